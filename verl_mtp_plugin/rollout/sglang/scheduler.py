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
from . import capturers, handles, questions, refusals, routes
from .retraction import SCHEDULER, can_retract

__all__ = ["HANDLES", "PATCHES", "SCHEDULER", "UPDATERS", "can_retract"]

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
    """Whether nothing runs. In a paused engine, requests that wait for the pause to end are nothing that runs.

    Neither retracted requests nor those whose grammar is compiled (the grammar queue) hold a row of the KV cache; it
    may be flushed and released, and they are prefilled after it.
    """
    if not getattr(self, "_engine_paused", False):
        return original(self, *args, **kwargs)
    asked = inspect.signature(original).bind(self, *args, **kwargs).arguments
    if asked.get("for_health_check"):
        return original(self, *args, **kwargs)
    queues = [(getattr(self, "grammar_manager", None), "grammar_queue")]
    if not asked.get("ignore_waiting"):  # SGLang leaves them out by itself
        queues.append((self, "waiting_queue"))
    taken: list[tuple[Any, str, Any]] = []
    try:
        for owner, name in queues:
            queue = getattr(owner, name, None)
            if queue and not any(map(_holds_kv, queue)):
                taken.append((owner, name, queue))
                setattr(owner, name, [])
        return original(self, *args, **kwargs)
    finally:
        for owner, name, queue in taken:
            setattr(owner, name, queue)


def _holds_kv(request: Any) -> bool:
    holds = getattr(getattr(request, "kv", None), "holds_kv", None)  # SGLang >= 0.5.20
    return bool(holds) if holds is not None else request.req_pool_idx is not None


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
        "0.5.20); waiting for an idle engine takes until the timeout (from 0.5.21 on, and in all beside a request "
        "whose grammar is compiled)",
        upstream="SGLang 0.5.21 for the release; delete when flush_cache with a timeout leaves waiting requests out, "
        "and the grammar queue",
        decide=decide_idle,
        build=around(is_fully_idle),
        absent_ok=True,
    ),
    *capturers.PATCHES,
    *refusals.PATCHES,
)
