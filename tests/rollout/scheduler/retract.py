"""SGLang's own scheduler with requests that a pause has retracted. In the process with SGLang."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

from . import engine, workers


def everything(found: dict[str, Any]) -> dict[str, Any]:
    """Add to ``found`` what can be done after a retract, and whether the plugin allows one."""
    from verl_mtp_plugin.rollout.sglang.scheduler import can_retract

    kinds = ["flush", "release", "holding"]
    if hasattr(importlib.import_module(engine.SCHEDULER).Scheduler, "is_fully_idle"):  # as old as a flush that waits
        kinds.append("deferred_flush")
    found["can_retract"] = can_retract()
    found["after_retract"] = {kind: after_retract(kind) for kind in kinds}
    found["prefilled"] = {mode: prefilled(overlap=mode == "overlap") for mode in ("overlap", "normal")}
    found["idle_with_a_request_waiting"] = _idle_with_a_request_waiting()
    return found


def make_stand_in() -> Any:
    """SGLang's ``Scheduler`` with two requests running (0, 1), and one that waits and has never run (2)."""
    from verl_mtp_plugin.testing.sglang_scheduler import Behaviour
    from verl_mtp_plugin.testing.sglang_workers import make_workers

    real = importlib.import_module(engine.SCHEDULER).Scheduler
    arguments = SimpleNamespace(disable_overlap_schedule=True, speculative_algorithm="EAGLE")
    sockets = SimpleNamespace(send=lambda output: None)
    scheduler = type("StandIn", (Behaviour, real), {})(arguments, sockets, make_workers(arguments))
    names = ("tp_worker", "draft_worker", "tp_cpu_group", "memory_saver_adapter", "flush_cache", "is_fully_idle")
    parts = {name: getattr(scheduler, name, None) for name in names}
    scheduler.weight_updater = workers.make_updater(parts | {"scheduler": scheduler})
    scheduler.ps = SimpleNamespace(pp_size=1)
    scheduler.enable_overlap_mlx = scheduler._pause_started_at = None
    scheduler.running_batch = _batch(0, 1)
    scheduler.waiting_queue = _batch(2).reqs
    return scheduler


def _batch(*rids: int) -> Any:
    from verl_mtp_plugin.testing.sglang_parts import Batch, Request

    class Prefilled(Batch):
        """A batch as SGLang's prefill leaves it."""

        forward_mode = SimpleNamespace(is_extend=lambda: True)

        def merge_batch(self, other: Any) -> None:
            self.reqs = [*self.reqs, *other.reqs]

    batch = Prefilled()
    sampling = SimpleNamespace(max_new_tokens=8)
    batch.reqs = [Request(SimpleNamespace(rid=str(rid), sampling_params=sampling)) for rid in rids]
    return batch


def _pause(scheduler: Any) -> None:
    scheduler.pause_generation(engine.io("PauseGenerationReqInput")(mode="retract"))


def after_retract(what: str) -> dict[str, Any]:
    """Pause with ``retract``, then do one thing.

    Args:
        what: flush, deferred_flush, release, or holding (a flush while a waiting request has a row of the cache).
    """
    scheduler = make_stand_in()
    _pause(scheduler)
    waiting = list(scheduler.waiting_queue)
    result: Any
    try:
        if what == "release":
            updater = scheduler.weight_updater or scheduler
            updater.release_memory_occupation(engine.io("ReleaseMemoryOccupationReqInput")(tags=["kv_cache"]))
            result = sorted(scheduler.memory_saver_adapter.unmapped)
        elif what == "deferred_flush":
            answer = _flush_handler(scheduler)(engine.io("FlushCacheReqInput")(timeout_s=60.0))
            result = "waits" if answer is None else answer.success
        else:
            if what == "holding":
                waiting[0].req_pool_idx, waiting[0].kv.holds_kv = 5, True
            result = scheduler.flush_cache()
    except AssertionError as error:
        result = f"AssertionError: {error}"
    return {"result": result, "waiting": [r.rid for r in waiting], "kept": scheduler.waiting_queue == waiting}


def _flush_handler(scheduler: Any) -> Any:
    if hasattr(scheduler, "flush_cache_wrapped"):
        return scheduler.flush_cache_wrapped
    wrapper = importlib.import_module("sglang.srt.managers.scheduler_components.flush_wrapper").SchedulerFlushWrapper
    parts = {"flush_cache": scheduler.flush_cache, "is_fully_idle": scheduler.is_fully_idle}
    others = dict.fromkeys(inspect.signature(wrapper).parameters.keys() - parts.keys())  # who is told in the end
    return wrapper(**parts, **others).handle


def prefilled(*, overlap: bool) -> dict[str, Any]:
    """Retract just after a batch (3) was prefilled: who waits then, and whether the engine is idle."""
    scheduler = make_stand_in()
    scheduler.enable_overlap = overlap
    scheduler.last_batch = scheduler.cur_batch = _batch(3)
    if overlap:
        scheduler.result_queue.append((scheduler.last_batch, None))
    scheduler.process_batch_result = lambda batch, result: None
    _pause(scheduler)
    return {"waiting": sorted(request.rid for request in scheduler.waiting_queue), "idle": scheduler.flush_cache()}


def _idle_with_a_request_waiting() -> bool:
    """Nothing was paused: what waits would run next."""
    scheduler = make_stand_in()
    scheduler.running_batch.reqs = []
    return bool(scheduler.flush_cache())
