"""The patches behind :mod:`.grad_clip`, as data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from ...environment import Environment
from ...patching import Patch, PatchSet, Target, Verdict, applicable, around, unsupported

OPTIMIZER: Final = "megatron.core.optimizer.optimizer"
#: The optimizers with a ``step`` of their own; verl's is always a chain, of one or more of the others.
CLASSES: Final = {
    "chained": "ChainedOptimizer",
    "mixed_precision": "MixedPrecisionOptimizer",
    "fp32": "FP32Optimizer",
}
#: What a step is made of: MTP is measured after the first and given back before the last.
PARTS: Final = frozenset({"prepare_grads", "step_with_ready_grads"})


def _step(original: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
    from .grad_clip import step

    return step(original, optimizer, *args, **kwargs)


def _decider(owner: str) -> Callable[[Environment, ModuleType], Verdict]:
    def decide(environment: Environment, module: ModuleType) -> Verdict:
        method: Any = inspect.unwrap(getattr(module, owner).step)
        missing = PARTS - set(method.__code__.co_names)
        if missing or not hasattr(getattr(module, owner), "get_grad_norm"):
            return unsupported(
                found=f"{environment.label('megatron-core')} whose {owner}.step does not call "
                + " and ".join(sorted(missing or {"get_grad_norm"})),
                expected="a step in parts, as in megatron-core 0.15 to 0.19",
                advice="set actor_rollout_ref.model.mtp.plugin.clip_grad=joint",
            )
        return applicable()

    return decide


GRAD_CLIP: Final = PatchSet(
    "training.grad_clip",
    tuple(
        Patch(
            id=f"training.grad_clip.{name}",
            target=Target(OPTIMIZER, f"{owner}.step"),
            reason="the gradients of the MTP head count in the one norm that everything is clipped by: they shrink "
            "the policy's update even with detach_encoder, and their own norm is not reported",
            upstream="megatron-core 0.19 clips apart what config.mtp_detach_heads tags; needed while verl sets no "
            "such thing and reports no norm of MTP",
            decide=_decider(owner),
            build=around(_step),
        )
        for name, owner in CLASSES.items()
    ),
)

PATCHES: Final = (GRAD_CLIP,)
