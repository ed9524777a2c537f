"""A scheduler without a model: SGLang's own ``Scheduler``, whose rules run, over stand-ins for batches and workers.

What runs is the installed release's: when the engine is idle, what may be released and resumed, what pause, retract,
abort and flush do, whether weights need a session. What stands in: the batch (a list), the model (numbers), the memory
saver (a list of what is unmapped), and the loop. A request gets one token per step, and every token says which weights
made it: ``version * TOKENS_PER_VERSION + position``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

from . import faults
from .faults import Fault
from .sglang_messages import Sockets, batch_output
from .sglang_parts import Batch, MemorySaver, Nothing, Request, StandInFault, nothing

TOKENS_PER_VERSION: Final = 10_000
STEP_S: Final = 0.005
#: Size of the KV pool that the stand-in reports, in GB.
KV_CACHE_GB: Final = 1.5
#: Where each release handles a message: the first of these attributes that the scheduler has.
HANDLERS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "TokenizedGenerateReqInput": ("generate", ("accept",)),
    "AbortReq": ("abort", ("abort_request",)),
    "PauseGenerationReqInput": ("pause", ("pause_generation",)),
    "ContinueGenerationReqInput": ("continue", ("continue_generation",)),
    "FlushCacheReqInput": ("flush", ("flush_wrapper.handle", "flush_cache_wrapped")),
    "ReleaseMemoryOccupationReqInput": (
        "release",
        ("weight_updater.release_memory_occupation", "release_memory_occupation"),
    ),
    "ResumeMemoryOccupationReqInput": (
        "resume",
        ("weight_updater.resume_memory_occupation", "resume_memory_occupation"),
    ),
    "BeginWeightUpdateReqInput": ("begin", ("weight_updater.begin_weight_update",)),
    "UpdateWeightsFromTensorReqInput": (
        "update",
        ("weight_updater.update_weights_from_tensor", "update_weights_from_tensor"),
    ),
    "EndWeightUpdateReqInput": ("end", ("weight_updater.end_weight_update",)),
    "GetInternalStateReq": ("generate", ("internal_state",)),
}
#: Parts of a scheduler for which a GPU is needed, and all that SGLang's rules call of them in any tested release.
PARTS: Final[dict[str, tuple[str, ...]]] = {
    "tree_cache": ("reset", "finish"),  # finish and what follows from 0.5.21 on
    "req_to_token_pool": ("clear", "reset_aux_cache_allocator"),
    "token_to_kv_pool_allocator": ("clear",),
    "kv_events_publisher": ("publish_kv_events",),
    "beam_coordinator": ("retire_group",),
}


class Behavior:
    """What comes before SGLang's ``Scheduler`` in the stand-in's bases: state, loop, tokens."""

    def __init__(self, server_args: Any, sockets: Sockets, workers: tuple[Any, Any]) -> None:
        self.server_args, self.sockets = server_args, sockets
        self.running_batch, self.result_queue = Batch(), deque[Any]()
        self.waiting_queue: list[Request] = []
        self.last_batch = self.cur_batch = self.chunked_req = self.disaggregation_mode = None
        self.enable_overlap = not server_args.disable_overlap_schedule
        self.pp_size = 1
        self.running_mbs: list[Batch] = []
        self.tp_worker, self.draft_worker = workers
        self.memory_saver_adapter, self.offload_tags = MemorySaver(), set[str]()
        self._engine_paused = False
        self.messages: list[str] = []  # all that have come
        self.death = ""  # what ended it
        self.stopped = False  # by a test that is done with it
        self.send_to_tokenizer = SimpleNamespace(send_output=lambda output, request=None: sockets.send(output))
        self._prepare_for_all_releases()

    def _prepare_for_all_releases(self) -> None:
        """Attributes that one release or another looks at on the way to its rules."""
        for part, methods in PARTS.items():
            vars(self)[part] = Nothing(*methods)
        self.enable_hierarchical_cache = self.enable_hisparse = self.enable_hicache_storage = False
        self.enable_lmcache = self.enable_continuous_input_polling = False
        self.decode_offload_manager = self.hisparse_coordinator = self.grammar_backend = self.dllm_config = None
        self.mm_receiver = self._pending_flush = self.tp_cpu_group = self.device_module = None
        self.grammar_queue: list[Any] = []
        self.grammar_manager = SimpleNamespace(grammar_queue=[], clear=nothing, abort_requests=nothing)
        self.dllm_manager = SimpleNamespace(any_staging_reqs=lambda: False)
        self.metrics_reporter = SimpleNamespace(
            reset_metrics=nothing, is_stats_logging_rank=False, current_scheduler_metrics_enabled=False
        )
        self.ipc_channels = SimpleNamespace(send_to_tokenizer=self.send_to_tokenizer)
        self.num_generated_tokens = 0
        self.enable_overlap_mlx = self._pause_started_at = self.rust_server = None
        self._pause_intervals: list[tuple[float, float]] = []  # from 0.5.22 on

    def run(self, stop: Callable[[], bool]) -> None:
        """Handle messages and make tokens until ``stop``; raises what SGLang's rules raise."""
        while not stop():
            message = self.sockets.receive(STEP_S)
            self._feign_results()
            if message is None:
                self._step()
            else:
                self._handle(message)
            for check in ("flush_wrapper.check_pending", "_check_pending_flush"):
                found = _attribute(self, check)
                if found is not None:
                    found()

    def _handle(self, message: Any) -> None:
        step, candidates = HANDLERS[type(message).__name__]
        self.messages.append(type(message).__name__)
        fault = faults.take(step)
        if fault is Fault.HANG:
            return
        if fault is Fault.DIE:
            raise StandInFault(f"asked to die at {step}")
        if fault is Fault.BUSY:
            self.result_queue.append((Batch(), None))  # a step in flight
        handler = next(found for name in candidates if (found := _attribute(self, name)) is not None)
        output = self.sockets.refusal(message) if fault is Fault.FAIL else handler(message)
        if output is not None:
            self.sockets.send(output)

    def _feign_results(self) -> None:
        """A step whose result has not been looked at, for as long as a test says so."""
        busy = faults.peek("drain") is Fault.BUSY
        if busy and not self.result_queue:
            self.result_queue.append((Batch(), None))  # a step in flight
        elif not busy:
            self.result_queue.clear()

    def accept(self, message: Any) -> None:
        self.waiting_queue.append(Request(message))

    def _add_request_to_queue(self, request: Request, *args: Any, **kwargs: Any) -> None:
        request.retractions += 1
        self.waiting_queue.append(request)

    def reset_metrics(self) -> None:
        """SGLang's counters; there are none here."""

    def internal_state(self, message: Any) -> Any:
        """As much of ``get_internal_state`` as a GPU is not needed for."""
        return self.sockets.internal_state({"memory_usage": {"kvcache": KV_CACHE_GB}})

    def record_weight_version_change(self, new_version: Any) -> None:
        """SGLang 0.5.15 and later note which request saw which version."""

    def _step(self) -> None:
        if self._engine_paused:
            return
        batch = self.running_batch.reqs
        batch += self.waiting_queue
        self.waiting_queue.clear()
        if batch and self.memory_saver_adapter.unmapped:
            raise StandInFault(f"a model ran with {', '.join(sorted(self.memory_saver_adapter.unmapped))} unmapped")
        for request in batch:
            request.tokens.append(self.tp_worker.version * TOKENS_PER_VERSION + len(request.tokens))
            if request.to_finish is not None or len(request.tokens) >= request.limit:
                request.done = True
                self.sockets.send(batch_output(request))
        self.running_batch.filter_batch()


def _attribute(owner: Any, path: str) -> Any:
    for name in path.split("."):
        owner = getattr(owner, name, None)
        if owner is None:
            return None
    return owner
