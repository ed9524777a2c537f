"""verl's real Megatron engine on a tiny MiMo, watched at the entrance of its ``GPTModel``, and batches for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "quickstart"))

import engine as quickstart
import model as tiny
import torch
from torch import Tensor

from .verl_fixes_samples import MASKS, PROMPTS, RESPONSES


def prepare(*, bare: bool) -> None:
    """Load verl with the plugin, the patches under test among what is armed, or ``bare``."""
    if bare:
        os.environ["VERL_MTP_PLUGIN"] = "off"
    quickstart.prepare(plugin=not bare)
    tiny.register()
    from verl_mtp_plugin import runtime
    from verl_mtp_plugin.bridges.mends import mbridge_mimo
    from verl_mtp_plugin.patching import PatchEngine
    from verl_mtp_plugin.training import hooks
    from verl_mtp_plugin.verl_fixes.hooks import PATCHES

    if bare:
        PatchEngine().arm((*mbridge_mimo.PATCHES, hooks.POSTPROCESS))
    else:
        runtime._runtime.engine.arm(PATCHES)  # nothing new where the plugin registers them


def decisions() -> dict[str, str]:
    import verl_mtp_plugin

    records = verl_mtp_plugin.report().patches
    return {r.id.partition(".")[2]: str(r.decision) for r in records if r.id.startswith("verl_fixes.")}


class Witness:
    """What reaches the ``GPTModel`` of an engine, its head and its MTP layers, and what verl prepares for it."""

    def __init__(self, engine: Any) -> None:
        from megatron.core.models.gpt.gpt_model import GPTModel
        from verl.models.mcore import model_forward

        self.calls: list[dict[str, Any]] = []
        self.heads = self.mtp = self.prepared = 0
        (model,) = (m for chunk in engine.module for m in chunk.modules() if isinstance(m, GPTModel))
        self.model = model
        model.register_forward_pre_hook(self._see_call, with_kwargs=True)
        if model.post_process:
            model.output_layer.register_forward_pre_hook(partial(self._count, "heads"))
        for layer in model.mtp.layers if getattr(model, "mtp", None) is not None else ():
            layer.register_forward_pre_hook(partial(self._count, "mtp"))
        for name in [name for name in vars(model_forward) if name.startswith(("preprocess_thd", "preprocess_bshd_"))]:
            setattr(model_forward, name, self._counted(getattr(model_forward, name)))

    def _see_call(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.calls.append({name: _listed(kwargs.get(name)) for name in ("input_ids", "labels", "loss_mask")})

    def _count(self, what: str, *_: Any) -> None:
        setattr(self, what, getattr(self, what) + 1)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.prepared += 1
            return function(*args, **kwargs)

        return counting

    def take(self) -> dict[str, Any]:
        """What was seen since the last time."""
        found = {"calls": self.calls, "heads": self.heads, "mtp": self.mtp, "prepared": self.prepared}
        self.calls, self.heads, self.mtp, self.prepared = [], 0, 0, 0
        return found


def _listed(value: Any) -> Any:
    return value.to(torch.int64).tolist() if torch.is_tensor(value) and not value.is_nested else None


def make_model(folder: Path) -> Path:
    """The quickstart's tiny MiMo in a new folder."""
    return tiny.make(folder / "model", seed=0)


def new_engine(source: Path, **options: Any) -> Any:
    """The quickstart's engine: ``train_mtp`` and ``with_mtp`` are ``mtp.enable_train`` and ``mtp.enable``."""
    return quickstart.Engine(source, steps=3, **options)


def mtp_engine(folder: Path, **options: Any) -> Any:
    """:func:`new_engine` over a new model."""
    return new_engine(make_model(folder), **options)


# -- batches as PPO and SFT make them ----------------------------------------------------------------------------------


def jagged(rows: Any) -> Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def padded(rows: Any, *, left: bool = False) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[0] * (width - len(r)) + list(r) if left else list(r) + [0] * (width - len(r)) for r in rows])


def ones(rows: Any) -> list[list[int]]:
    return [[1] * len(row) for row in rows]


def batch(kind: str, tokenizer: Any) -> Any:
    """The three samples, with a loss mask of one of KINDS."""
    from verl.utils import tensordict_utils
    from verl.utils.dataset.dataset_utils import DatasetPadMode

    whole = [[0] * len(p) + list(m) for p, m in zip(PROMPTS, MASKS, strict=True)]
    attention = torch.cat([padded(ones(PROMPTS), left=True), padded(ones(RESPONSES))], dim=1)
    tensors = {
        "input_ids": jagged([[*p, *r] for p, r in zip(PROMPTS, RESPONSES, strict=True)]),
        "position_ids": jagged([range(len(row)) for row in whole]),
        "loss_mask": {
            "padded": padded(MASKS),
            "response": jagged(MASKS),
            "full": jagged(whole),
            "every": jagged([[1] * len(row) for row in whole]),
        }[kind],
    }
    if kind == "padded":
        tensors["attention_mask"] = attention
    options = {
        "use_remove_padding": True,
        "use_dynamic_bsz": False,
        "micro_batch_size_per_gpu": len(PROMPTS),
        "global_batch_size": len(PROMPTS),
        "temperature": 1.0,
        "pad_mode": DatasetPadMode.NO_PADDING,
        "pad_token_id": tokenizer.pad_token_id,
        "use_fused_kernels": False,
    }
    return tensordict_utils.get_tensordict(tensor_dict=tensors, non_tensor_dict=options)


def mean_log_prob(model_output: Any, data: Any, dp_group: Any = None) -> Any:
    """A loss that reads no mask."""
    return -model_output["log_probs"].values().mean(), {}


def squared_values(model_output: Any, data: Any, dp_group: Any = None) -> Any:
    return model_output["values"].values().square().mean(), {}


def use_pipeline() -> None:
    """Let the engines be stages of one pipeline, one for each process."""
    import verl.workers.config as configs

    stages, original = int(os.environ.get("WORLD_SIZE", "1")), configs.McoreEngineConfig
    configs.McoreEngineConfig = lambda **options: original(**options, pipeline_model_parallel_size=stages)
