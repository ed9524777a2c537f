"""verl's ``ServerAdapter``, connected to SGLang's handlers in the same process, with a drafter and a target."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import torch

from . import workers
from .models import Model

#: How MiMo's checkpoints name the tensors of their first MTP layer.
PREFIX = "model.mtp_layers.0."
VERL = "verl.workers.rollout.sglang_rollout.sglang_rollout"


class Config(SimpleNamespace):
    """As much of verl's rollout config as the adapter reads."""

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


class Server:
    """The handle of the server's Ray actor."""

    def __init__(self, load_format: str | None = None) -> None:
        self.steps: list[int] = []
        self.set_global_steps = SimpleNamespace(remote=self._set)
        if load_format is not None:
            self.load_format = load_format
            self.mtp_load_format = SimpleNamespace(remote=self._say)

    async def _say(self) -> str:
        return self.load_format

    async def _set(self, step: int) -> None:
        self.steps.append(step)


class SmallDrafter(Model):
    """A drafter with one matrix."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__(**shapes)
        self.input_proj = torch.nn.Linear(3, 4, bias=False)

    def load_weights(self, weights: Any) -> None:
        super().load_weights((name.removeprefix(PREFIX), tensor) for name, tensor in weights)


def make_scheduler(kind: str, worker: str = "EAGLEWorkerV2") -> tuple[Any, Any, Any]:
    """A scheduler with a drafter, the drafter, and the target."""
    if kind == "mimo":
        from . import mimo

        (draft,) = mimo.drafters(1, kv_heads=2)
        shapes = {"embed": (mimo.VOCABULARY, mimo.HIDDEN), "head": (mimo.VOCABULARY, mimo.HIDDEN)}
        target_model = Model(**shapes).to(torch.bfloat16)
        draft.model.embed_tokens.weight, draft.lm_head.weight = target_model.embed, target_model.head
    else:
        draft, target_model = SmallDrafter(shared=(4,)), Model(shared=(4,))
        draft.shared = target_model.shared
    target = workers.make_target(workers.make_runner(target_model))
    speculative = workers.make_worker(worker, [workers.make_runner(draft)], target)
    return workers.make_scheduler(speculative, target, lambda: None), draft, target_model


def make_adapter(
    client: Any, kind: str, *, leader: bool = True, mtp: bool = True, train: bool = True, load_format: str | None = None
) -> Any:
    """verl's adapter, connected; ``load_format`` is what the server says of its drafter, None where it cannot."""
    from torch.distributed.device_mesh import init_device_mesh

    adapter_class = importlib.import_module(VERL).ServerAdapter
    adapter = object.__new__(adapter_class)
    adapter.config = Config(
        checkpoint_engine=SimpleNamespace(update_weights_bucket_megabytes=1),
        mtp=SimpleNamespace(enable=mtp, enable_train=train, enable_rollout=mtp),
        free_cache_engine=True,
    )
    if kind == "mimo":
        from . import mimo

        hf_config = mimo.config(kv_heads=2)
    else:
        name = "MiMoForCausalLM" if kind == "plain" else "NobodyForCausalLM"
        hf_config = SimpleNamespace(architectures=[name], model_type="", num_hidden_layers=1)
    adapter.model_config = SimpleNamespace(hf_config=hf_config, local_path=None)
    mesh = init_device_mesh("cpu", mesh_shape=(1, 1, 1), mesh_dim_names=["dp", "infer_tp", "infer_pp"])
    adapter.device_mesh = mesh if leader else {"infer_tp": SimpleNamespace(get_local_rank=lambda: 1)}
    adapter._engine, adapter.server_actor = client if leader else None, Server(load_format)
    adapter.replica_rank, adapter.node_rank, adapter.rollout_rank = 3, 0, 0
    adapter._pd_role, adapter._has_server, adapter.sleep_level = None, True, 2
    return adapter


def weights(kind: str, seed: int, skip: str | None = None) -> dict[str, Any]:
    if kind == "mimo":
        from . import mimo

        tensors: dict[str, Any] = mimo.checkpoint(kv_heads=2, seed=seed)
    else:
        generator = torch.Generator().manual_seed(seed)
        shapes = {"shared": (4,), "model.layers.0.input_proj.weight": (4, 3), f"{PREFIX}input_proj.weight": (4, 3)}
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: tensor for name, tensor in tensors.items() if skip is None or skip not in name}
