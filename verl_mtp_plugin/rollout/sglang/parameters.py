"""The drafter's own parameters on every tensor-parallel rank, and digests of what they hold. Scheduler processes."""

from __future__ import annotations

from typing import Any, Final

#: Before the names of a drafter that has a model for each step.
_STEP: Final = "draft_step_"


def of_all_ranks(scheduler: Any, runners: list[Any], *, with_digests: bool) -> list[dict[str, Any]]:
    """For each rank of the scheduler's tensor-parallel group: name -> [number of elements, dtype, digest or None].

    Every rank of the group must call it. Embedding and head that the drafter shares with the target are left out.
    """
    import torch

    own = _own(scheduler, runners)
    values: dict[str, Any] = {}
    if with_digests:
        from .digest import as_integers, digest

        values = dict(zip(own, as_integers([digest(parameter) for parameter in own.values()])))
    here = {name: [p.numel(), str(p.dtype).removeprefix("torch."), values.get(name)] for name, p in own.items()}
    group = scheduler.tp_cpu_group
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size(group=group) == 1:
        return [here]
    everywhere: list[Any] = [None] * torch.distributed.get_world_size(group=group)
    torch.distributed.all_gather_object(everywhere, here, group=group)
    return everywhere


def step_of(parameter: str) -> int:
    """The step that a parameter named by :func:`of_all_ranks` drafts; 0 where one model drafts them all."""
    first = parameter.partition(".")[0]
    return int(first.removeprefix(_STEP)) if first.startswith(_STEP) else 0


def _own(scheduler: Any, runners: list[Any]) -> dict[str, Any]:
    target = scheduler.tp_worker.model_runner.model
    shared = {parameter.data_ptr() for parameter in target.parameters()}
    own = {}
    for step, runner in enumerate(runners):
        prefix = f"{_STEP}{step}." if len(runners) > 1 else ""
        for name, parameter in runner.model.named_parameters():
            if parameter.data_ptr() not in shared:
                own[prefix + name] = parameter
    return own
