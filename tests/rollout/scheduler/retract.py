"""SGLang's own scheduler with requests that a pause has retracted. In the process with SGLang."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

from . import engine, workers


def everything(found: dict[str, Any]) -> dict[str, Any]:
    """Add to ``found`` what can be done after a retract, and whether the plugin allows one."""
    from verl_mtp_plugin.rollout.sglang.retraction import lost_with
    from verl_mtp_plugin.rollout.sglang.scheduler import can_retract

    kinds = ["flush", "release", "holding", "grammar", "grammar_release"]
    if hasattr(importlib.import_module(engine.SCHEDULER).Scheduler, "is_fully_idle"):  # as old as a flush that waits
        kinds.append("deferred_flush")
    found["can_retract"] = can_retract()
    found["refused"] = {name: can_retract(arguments=arguments(**given)) for name, given in ENGINES.items()}
    found["lost_with"] = {name: lost_with([request(**given)]) for name, given in REQUESTS.items()}
    found["penalties"] = penalties()
    found["paused_loop"] = {name: paused_loop(*home) for name, home in LOOPS.items() if engine.module_of(home[0])}
    found["after_retract"] = {kind: after_retract(kind) for kind in kinds}
    found["prefilled"] = {mode: prefilled(overlap=mode == "overlap") for mode in ("overlap", "normal")}
    found["idle_with_a_request_waiting"] = _idle_with_a_request_waiting()
    return found


#: Engines by what is special about them.
ENGINES: dict[str, dict[str, Any]] = {
    "plain": {},
    "pipeline": {"pp_size": 2},
    "pdmux": {"enable_pdmux": True},
    "prefill server": {"disaggregation_mode": "prefill"},
    "decode server": {"disaggregation_mode": "decode"},
    "data parallel": {"dp_size": 2, "enable_dp_attention": True},
    "local control": {"dp_size": 2, "enable_dp_attention": True, "enable_dp_attention_local_control_broadcast": True},
    "routed experts": {"enable_return_routed_experts": True},
    "indexer": {"enable_return_indexer_topk": True},
    "hidden states": {"enable_return_hidden_states": True},
    "hierarchical cache": {"enable_hierarchical_cache": True},
    "sparse cache": {"enable_hisparse": True},
    "diffusion": {"dllm_algorithm": "LowConfidence"},
}
#: Requests by what is special about them; as verl sends them, their sampling parameters are a dict.
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "log-probs": {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2},
    "as verl's": {"sampling_params": {"temperature": 1.0, "top_k": -1, "repetition_penalty": 1.0}},
    "embeds": {"input_ids": None, "input_embeds": [[0.0, 1.0]]},
    "frequency": {"sampling_params": {"frequency_penalty": 0.5}},
    "presence": {"sampling_params": {"presence_penalty": 0.5}},
    "repetition": {"sampling_params": {"repetition_penalty": 1.1}},
    "minimum": {"sampling_params": {"min_new_tokens": 4}},
}
LOOPS = {
    "event_loop_pp": ("sglang.srt.managers.scheduler_pp_mixin", "SchedulerPPMixin"),
    "event_loop_pdmux": ("sglang.srt.multiplex.multiplexing_mixin", "SchedulerMultiplexMixin"),
}


def arguments(**given: Any) -> Any:
    """Of an engine: those of this release that matter here, as they are by default, and those that are given."""
    default = {"pp_size": 1, "disaggregation_mode": "null", "enable_pdmux": False, "enable_hierarchical_cache": False}
    return SimpleNamespace(**{**default, **given})


def request(**given: Any) -> Any:
    """SGLang's own message of a request."""
    return engine.io("GenerateReqInput")(**{"input_ids": [1, 2], "sampling_params": {}, **given})


def penalties() -> dict[str, bool]:
    """For each of SGLang's penalties, whether a batch that is made anew knows of a token that was generated before."""
    import torch

    library = importlib.import_module("sglang.srt.sampling.penaltylib")
    strengths = {"frequency_penalty": 0.5, "presence_penalty": 0.5, "repetition_penalty": 1.5}
    parameters = SimpleNamespace(**strengths)

    class Running:  # SGLang refers to it weakly
        reqs, device = [SimpleNamespace(sampling_params=parameters, output_ids=[7])], "cpu"

    batch = Running()
    found = {}
    for name in strengths:
        penalizer = getattr(library, f"Batched{name.split('_')[0].capitalize()}Penalizer", None)
        if penalizer is not None:
            made = library.BatchedPenalizerOrchestrator(vocab_size=9, batch=batch, penalizers={penalizer})
            (one,) = made.penalizers.values()
            cumulated = getattr(one, f"cumulated_{name.split('_')[0]}_penalties")
            found[name] = bool((cumulated[0] != cumulated[0, 0]).any())
            made.cumulate_output_tokens(torch.tensor([7]))
            assert cumulated[0, 7] != cumulated[0, 0]
    return found


class Scheduled(Exception):
    """A loop went on to look for work."""


def paused_loop(module: str, owner: str) -> str:
    """SGLang's own loop of a paused scheduler with requests that were retracted: what it does first."""
    name = next(name for name, home in LOOPS.items() if home == (module, owner))
    scheduler = make_stand_in()
    _pause(scheduler)

    def scheduled(*args: Any, **kwargs: Any) -> Any:
        raise Scheduled(f"{len(scheduler.waiting_queue)} requests wait")

    def init_pp_loop_state() -> None:
        scheduler.running_mbs = [scheduler.running_batch] * 2
        scheduler.last_mbs, scheduler.mbs, scheduler.send_req_work = [None] * 2, [None] * 2, []

    scheduler.pp_size = scheduler.pp_loop_size = 2
    scheduler.pp_group = SimpleNamespace(is_last_rank=True, is_first_rank=True)
    scheduler.init_pp_loop_state = init_pp_loop_state
    scheduler.recv_requests = scheduler.ingest_requests = list
    scheduler.process_input_requests = lambda requests: None
    scheduler.get_next_batch_to_run = scheduler.init_pdmux = scheduled
    found = importlib.import_module(module)
    if hasattr(found, "get_parallel"):
        engine._substitute(found, get_parallel=lambda: SimpleNamespace(pp_size=2))
    try:
        vars(getattr(found, owner))[name](scheduler)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ended"


def make_stand_in() -> Any:
    """SGLang's ``Scheduler`` with two requests running (0, 1), and one that waits and has never run (2)."""
    from verl_mtp_plugin.testing.sglang_scheduler import Behavior
    from verl_mtp_plugin.testing.sglang_workers import make_workers

    real = importlib.import_module(engine.SCHEDULER).Scheduler
    arguments = SimpleNamespace(disable_overlap_schedule=True, speculative_algorithm="EAGLE")
    sockets = SimpleNamespace(send=lambda output: None)
    scheduler = type("StandIn", (Behavior, real), {})(arguments, sockets, make_workers(arguments))
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
        what: flush, deferred_flush, release, or holding (a flush while a waiting request has a row of the cache);
            grammar and grammar_release are flush and release beside a request in the grammar queue.
    """
    scheduler = make_stand_in()
    _pause(scheduler)
    waiting = list(scheduler.waiting_queue)
    compiling = _batch(9).reqs if what.startswith("grammar") else []
    owner = scheduler if hasattr(type(scheduler), "move_ready_grammar_requests") else scheduler.grammar_manager
    owner.grammar_queue = compiling
    result: Any
    try:
        if what.endswith("release"):
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
    kept = scheduler.waiting_queue == waiting and owner.grammar_queue is compiling
    return {"result": result, "waiting": [r.rid for r in waiting], "kept": kept}


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
