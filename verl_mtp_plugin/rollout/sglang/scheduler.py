"""Patches in SGLang's scheduler processes, as data: light to import, since they are armed at ``import verl``.

SGLang calls this plugin in them from 0.5.11 on; before, the start-up finder loads it there (ARCHITECTURE.md).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from ...environment import Environment
from ...patching import Patch, Target, Verdict, applicable, around, not_needed
from . import handles, questions, routes

SCHEDULER: Final = "sglang.srt.managers.scheduler"
#: Where the scheduler updates weights: a base class up to 0.5.12, a part of its own from 0.5.13 on.
UPDATERS: Final = (
    ("mixin", "sglang.srt.managers.scheduler_update_weights_mixin", "SchedulerUpdateWeightsMixin"),
    ("manager", "sglang.srt.managers.scheduler_components.weight_updater", "SchedulerWeightUpdaterManager"),
)
#: Where ``LocalSerializedTensor`` is at home: up to 0.5.15, and from 0.5.16 on.
HANDLES: Final = (
    ("runner", "sglang.srt.model_executor.model_runner"),
    ("updater", "sglang.srt.model_executor.model_runner_components.weight_updater"),
)


_ROUTES: Final[dict[type, routes.Route]] = {}


def _route(worker_class: type) -> routes.Route:
    if worker_class not in _ROUTES:
        _ROUTES[worker_class] = routes.route_of(worker_class)
    return _ROUTES[worker_class]


def update_weights_from_tensor(original: Callable[[Any, Any], Any], self: Any, recv_req: Any) -> Any:
    """SGLang's update, by which the drafter and the target both get the weights, each handle opened once.

    ``self`` is the scheduler, or the part of it that updates weights; both have the workers.
    """
    worker = self.draft_worker
    drafts = 0 if worker is None else len(routes.draft_runners(worker))
    with handles.read_by(drafts + 1):
        if worker is None or not routes.mends(_route(type(worker))):
            return original(self, recv_req)
        from ...view import View

        self.draft_worker = View(worker, update_weights_from_tensor=functools.partial(routes.deliver, worker))
        try:
            return original(self, recv_req)
        finally:
            self.draft_worker = worker


def is_fully_idle(original: Callable[..., bool], self: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether nothing runs. Retracted requests that wait for a pause to end are nothing that runs.

    They hold no row of the KV cache; it may be flushed and released, and they prefill again after it.
    """
    asked_apart = any(args) or any(kwargs.values())  # a health check, or a caller that leaves them out by itself
    if asked_apart or not getattr(self, "_engine_paused", False) or any(map(_holds_kv, self.waiting_queue)):
        return original(self, *args, **kwargs)
    waiting, self.waiting_queue = self.waiting_queue, []
    try:
        return original(self, *args, **kwargs)
    finally:
        self.waiting_queue = waiting


def _holds_kv(request: Any) -> bool:
    holds = getattr(getattr(request, "kv", None), "holds_kv", None)  # SGLang >= 0.5.20
    return bool(holds) if holds is not None else request.req_pool_idx is not None


def can_retract(scheduler: Any = None) -> str | None:
    """Why requests cannot be retracted for a weight sync with the installed SGLang; None if they can.

    Args:
        scheduler: SGLang's ``Scheduler`` class; the one that this process has imported, if not given.
    """
    if scheduler is None:
        from sglang.srt.managers.scheduler import Scheduler

        scheduler = Scheduler
    pause = getattr(scheduler, "pause_generation", None)
    if pause is None:
        return "SGLang's Scheduler has no pause_generation"
    if "is_extend" not in inspect.unwrap(pause).__code__.co_names:
        return (
            "SGLang's Scheduler.pause_generation does not look at a batch that has just been prefilled (before 0.5.7): "
            "its requests would be lost, or the engine would never be idle"
        )
    idle = getattr(scheduler, "is_fully_idle", None)
    if idle is not None and "ignore_waiting" not in inspect.signature(idle).parameters and idle is inspect.unwrap(idle):
        return (
            "SGLang counts requests that were retracted as running (0.5.10 to 0.5.20), and the plugin's patch "
            "rollout.sglang.retract is not in place"
        )
    return None


def decide_idle(environment: Environment, module: ModuleType) -> Verdict:
    """Needed even where SGLang leaves waiting requests out (0.5.21): its ``flush_cache`` with a timeout does not."""
    scheduler = module.Scheduler
    if "_engine_paused" not in inspect.unwrap(scheduler.pause_generation).__code__.co_names:
        return not_needed("the scheduler does not note that it is paused")
    return applicable()


PATCHES: Final[tuple[Patch, ...]] = (
    *(
        Patch(
            id=f"rollout.sglang.handles.{name}",
            target=Target(module, f"{handles.CLASS}.get"),
            reason="with MTP every IPC handle of a weight sync is opened twice: the sync runs out of memory or hangs",
            upstream="sgl-project/sglang#17870 (open); delete when both models are given the same opened tensors",
            decide=handles.decide,
            build=around(handles.get),
            absent_ok=True,
        )
        for name, module in HANDLES
    ),
    *(
        Patch(
            id=f"rollout.sglang.update.{name}",
            target=Target(module, f"{owner}.update_weights_from_tensor"),
            reason="a multi-layer, frozen-KV or n-gram drafter ends the scheduler at the first sync, or the target "
            "keeps its old weights; tensors of a sync stay open until all ranks have met",
            upstream="SGLang 0.5.21 loads both models itself; for the handles as rollout.sglang.handles",
            build=around(update_weights_from_tensor),
            absent_ok=True,
        )
        for name, module, owner in UPDATERS
    ),
    *(
        Patch(
            id=f"rollout.sglang.questions.{name}",
            target=Target(module, f"{owner}.check_weights"),
            reason="nobody can say whether the drafter has the weights that the trainer sent",
            upstream="SGLang's own checksum covers the draft from 0.5.13 on, and compares nothing across layouts",
            build=around(questions.check_weights),
            absent_ok=True,
        )
        for name, module, owner in UPDATERS
    ),
    Patch(
        id="rollout.sglang.retract",
        target=Target(SCHEDULER, "Scheduler.is_fully_idle"),
        reason="releasing the KV cache ends the scheduler when requests were retracted before (SGLang 0.5.10 to "
        "0.5.20); waiting for an idle engine takes until the timeout (from 0.5.21 on)",
        upstream="SGLang 0.5.21 for the release; delete when flush_cache with a timeout leaves waiting requests out",
        decide=decide_idle,
        build=around(is_fully_idle),
        absent_ok=True,
    ),
)
