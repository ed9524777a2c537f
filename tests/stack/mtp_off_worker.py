"""Calls, in a job with MTP off, every patch that does nothing then: upstream must get what was given, and be heard.

MTP is off as users turn it off: by ``mtp.enable`` alone, while ``enable_train`` and ``enable_rollout`` stay set.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from types import SimpleNamespace as Bag
from typing import Any

import torch
import verl  # noqa: F401  (the plugin comes with it)
from verl.workers.config.model import MtpConfig

from verl_mtp_plugin import runtime

MTP = MtpConfig(enable=False, enable_train=True, enable_rollout=True, detach_encoder=True)
RESULT = object()


class Model(torch.nn.Module):
    """A language model without MTP layers."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Bag(mtp_num_layers=None, overlap_moe_expert_parallel_comm=True)
        self.head = torch.nn.Linear(2, 2)
        self.mtp_process = False
        self.post_process = True


MODEL = Model()
MODEL_CONFIG = Bag(mtp=MTP, hf_config=Bag(num_nextn_predict_layers=1))


def engine() -> Bag:
    """What verl's MegatronEngine has, as far as the patches look."""
    return Bag(
        model_config=MODEL_CONFIG,
        engine_config=Bag(use_fused_kernels=True, forward_only=False, vanilla_mbridge=True),
        tf_config=Bag(mtp_num_layers=None),
        module=[MODEL],
        optimizer=object(),
        is_value_model=False,
        is_mp_src_rank_with_outputs=lambda: True,
    )


def legacy_actor() -> Bag:
    return Bag(mtp_config=None, actor_module=[MODEL], actor_optimizer=object())


def postprocess(self, hidden_states, labels=None, loss_mask=None, mtp_in_postprocess=None, **kwargs): ...  # type: ignore[no-untyped-def]
def hybrid(self, input_ids, position_ids, labels=None, loss_mask=None): ...  # type: ignore[no-untyped-def]
def actor_init(self, config, model_config, actor_module, mtp_config=None): ...  # type: ignore[no-untyped-def]
def packed_forward(model, logits_processor, logits_processor_args, mtp_enable_train=False): ...  # type: ignore[no-untyped-def]
def spec_metrics(drafts, accepted, verify, keep=None): ...  # type: ignore[no-untyped-def]
def data_metrics(batch, use_critic=True): ...  # type: ignore[no-untyped-def]


BATCH = Bag(non_tensor_batch={})
OUTPUT = Bag(extra_fields={})
SERVER = Bag(config=Bag(mtp=MTP), model_config=MODEL_CONFIG, node_rank=0, engine=object())
RUNNER = Bag(is_draft_worker=False, server_args=Bag(enable_return_routed_experts=True))
#: Patch -> how upstream calls what it wraps, its signature where that is looked at, and what it returns.
Call = tuple[tuple[Any, ...], dict[str, Any], Callable[..., Any] | None, Any]


def call(*args: Any, like: Callable[..., Any] | None = None, returns: Any = RESULT, **kwargs: Any) -> Call:
    return args, kwargs, like, returns


CALLS: dict[str, Call] = {
    "job.gate.engine": call(MODEL_CONFIG, Bag()),
    "job.gate.megatron_actor": call(Bag(), config=Bag(), model_config=Bag(), actor_module=[MODEL], like=actor_init),
    "training.postprocess.gpt_model": call(MODEL, hidden_states=torch.ones(2, 1, 2), labels=None, like=postprocess),
    "training.engine_step.forward_backward_batch": call(engine(), {"input_ids": 1}, forward_only=False),
    "training.engine_step.train_batch": call(engine(), {"input_ids": 1}, returns={"metrics": {}}),
    "training.legacy_actor.forward_backward_batch": call(legacy_actor(), object(), False),
    "training.legacy_actor.update_policy": call(legacy_actor(), iter(()), returns={"loss": 1}),
    "training.worker_metrics": call(Bag(), {"metrics": {"loss": [1.0]}}),
    "training.grad_clip.chained": call(Bag()),
    "training.grad_clip.mixed_precision": call(Bag()),
    "training.grad_clip.fp32": call(Bag()),
    "training.fused.engine": call(engine()),
    "training.overlap.plan": call(MODEL, object(), labels=None),
    "verl_fixes.loss_mask": call(engine(), {"loss_mask": 1}, returns={"loss_mask": RESULT}),
    "verl_fixes.forward_only": call(engine(), object()),
    "bridge.demand": call(engine()),
    "bridge.load_mbridge": call(Bag(), [MODEL], "folder", memory_efficient=True),
    "bridge.load_megatron_bridge": call(Bag(), Bag(), [MODEL]),
    "bridge.export_mbridge": call(Bag(), [MODEL]),
    "bridge.export_megatron_bridge.stream": call(Bag(), [MODEL], cpu=True),
    "bridge.export_megatron_bridge.tasks": call(Bag(), [MODEL]),
    "bridge.checkpoint.manager": call(Bag(model=[MODEL]), "folder", del_local_after_load=True),
    "bridge.checkpoint.load": call({"model": 1}, "folder"),
    "bridge.dist_weights": call([MODEL], "folder", is_value_model=True),
    "bridge.dist_weights_legacy": call([MODEL], "folder", is_value_model=True),
    "bridge.mbridge_mimo.load": call(Bag(), "decoder.layers.0.mlp.linear_fc1.weight", [torch.ones(2, 2)]),
    "bridge.mbridge_mimo.save": call(Bag(), "decoder.layers.0.mlp.linear_fc1.weight", torch.ones(2, 2)),
    "rollout.acceptance.server.generate": call(SERVER, "prompt", sampling_params={}),
    "rollout.acceptance.ray_trainer": call(None, None, None, like=spec_metrics),
    "rollout.acceptance.main_ppo_sync": call(None, None, None, like=spec_metrics),
    "rollout.acceptance.trainer_v1": call(None, None, None, like=spec_metrics),
    "rollout.acceptance.ray_trainer_data": call(BATCH, like=data_metrics, returns={"reward": 1.0}),
    "rollout.acceptance.separation": call(BATCH, like=data_metrics, returns={"reward": 1.0}),
    "rollout.acceptance.request": call(Bag(), "id", prompt_ids=[1], returns=OUTPUT),
    "rollout.acceptance.resumed": call(Bag(), "id", returns=OUTPUT),
    "rollout.acceptance.resumed_0_8": call(Bag(), "id", returns=OUTPUT),
    "rollout.acceptance.request_0_7": call(Bag(), "id", returns=OUTPUT),
    "rollout.acceptance.turn": call(Bag(), Bag(extra_fields={}), {}),
    "rollout.vllm.sleep_level": call(SERVER),
    "rollout.vllm.adapter": call(Bag(config=Bag(mtp=MTP)), iter(())),
    "rollout.vllm.launch": call(SERVER, master_port=1),
    "rollout.sync_metrics": call(Bag(), {"loss": 1.0}, step=1),
    "rollout.sglang.refusals": call(Bag(tp_size=1)),
    "rollout.sglang.refusals.job": call(SERVER),
    "rollout.sglang.capturers.forward": call(RUNNER),
    "rollout.sglang.capturers.experts": call(RUNNER),
    "rollout.sglang.capturers.indexer": call(RUNNER),
    "bridge.tied_head": call(Bag(share_embeddings_and_output_weights=True, mtp_process=False)),
}
for _engine in ("automodel", "fsdp", "torchtitan", "veomni"):
    CALLS[f"job.engines.{_engine}"] = call(engine())
for _method in ("abort_all_requests", "resume_generation", "resume_engine_generation", "release_kv_cache"):
    CALLS[f"rollout.vllm.{_method}"] = call(SERVER)
CALLS["rollout.vllm.resume_kv_cache"], CALLS["rollout.vllm.generate"] = call(SERVER), call(SERVER, "prompt", seed=1)
for _loop in ("event_loop_pdmux", "event_loop_pp"):
    CALLS[f"rollout.sglang.retract.{_loop}"] = call(Bag(_engine_paused=False))
for _home in ("layers", "state"):
    CALLS[f"rollout.sglang.retract.experts.{_home}"] = call(True, model_config=object())


def get_global_experts_capturer() -> None:
    """What SGLang's module of model runners has: nothing is captured yet."""


get_global_indexer_capturer = get_global_experts_capturer
for _model in ("hybrid.hybrid_model.HybridModel", "mamba.mamba_model.MambaModel"):
    CALLS[f"model_class.megatron.core.models.{_model}.forward"] = call(MODEL, input_ids=1, position_ids=2, like=hybrid)


def outcome(patch: Any) -> str:
    """ "same", or what was not."""
    args, kwargs, like, returns = CALLS[patch.id]
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    before = repr(returns)

    def upstream(*given: Any, **named: Any) -> Any:
        seen.append((given, named))
        return returns

    async def upstream_async(*given: Any, **named: Any) -> Any:
        return upstream(*given, **named)

    built = patch.build(_like(upstream, like))
    function = getattr(built, "function", built)
    if inspect.iscoroutinefunction(function):
        function = patch.build(_like(upstream_async, like))
        result = asyncio.run(function(*args, **kwargs))
    else:
        result = function(*args, **kwargs)
    if result is not returns or repr(returns) != before:
        return f"returned {result!r}"
    if len(seen) != 1:
        return f"called upstream {len(seen)} times"
    wanted, got = _by_name(like, args, kwargs), _by_name(like, *seen[0])
    if wanted.keys() != got.keys() or any(wanted[name] is not got[name] for name in wanted):
        return f"called upstream with {got!r}"
    return "same"


def _like(function: Any, like: Callable[..., Any] | None) -> Any:
    if like is not None:
        function.__signature__ = inspect.signature(like)
    return function


def _by_name(like: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Any, Any]:
    if like is None:
        return {**dict(enumerate(args)), **kwargs}
    found = inspect.signature(like).bind(*args, **kwargs)
    found.apply_defaults()
    others = found.arguments.pop("kwargs", {})
    return {**found.arguments, **others}


def main() -> None:
    patch_sets = runtime._runtime._known_patches()
    patches = {patch.id: patch for patch_set in patch_sets for patch in patch_set.patches}
    state = {name: repr(value) for name, value in vars(MODEL.config).items()}
    found = {}
    for id in CALLS:
        try:
            found[id] = outcome(patches[id])
        except Exception as error:
            found[id] = f"{type(error).__name__}: {error}"
    if state != {name: repr(value) for name, value in vars(MODEL.config).items()}:
        found["model"] = "changed"
    print("=>", json.dumps(found))
    print("=>", json.dumps({patch.id: patch_set.id for patch_set in patch_sets for patch in patch_set.patches}))
    print("=>", json.dumps({patch.id: str(patch.target) for patch in patches.values()}))


if __name__ == "__main__":
    main()
