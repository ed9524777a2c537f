"""The patches that refuse MTP with overlapped expert parallelism, as data: light to import."""

from __future__ import annotations

from typing import Any, Final

from ..patching import Patch, PatchSet, Target, around

_UPSTREAM: Final = "delete when verl's engine takes return_schedule_plan and packs the labels of the plan"


def _engine(original: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
    from .overlap import refuse_overlap

    for chunk in module if isinstance(module, list) else [module]:
        refuse_overlap(chunk)
    return original(module, *args, **kwargs)


def _plan(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    from .overlap import refuse_plan

    return refuse_plan(original, model, *args, **kwargs)


ENGINE: Final = Patch(
    id="training.overlap.engine",
    target=Target("verl.utils.megatron_utils", "patch_engine_mtp"),
    reason="with overlap_moe_expert_parallel_comm and MTP the first training step ends in a TypeError about "
    "return_schedule_plan, after the first rollout",
    upstream=_UPSTREAM,
    build=around(_engine),
    absent_ok=True,
)

PLAN: Final = Patch(
    id="training.overlap.plan",
    target=Target("verl.models.mcore.model_forward_1f1b_overlap", "gptmodel_forward_1f1b_overlap"),
    reason="the schedule plan crashes on labels=None, and on labels, which it does not pack as the hidden states are",
    upstream=_UPSTREAM,
    build=around(_plan),
    absent_ok=True,
)

PATCHES: Final[tuple[Patch | PatchSet, ...]] = (ENGINE, PLAN)
