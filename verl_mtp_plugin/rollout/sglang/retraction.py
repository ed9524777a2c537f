"""Why requests in flight cannot be retracted for a weight sync (``sync_requests=retract``): every reason, by name.

Most are known from the installed SGLang and the arguments of its engine, so a server that would be asked to retract
and cannot is refused before it starts (:mod:`.launch`). Some depend on the requests, and are known when a sync begins.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

SCHEDULER: Final = "sglang.srt.managers.scheduler"

#: What SGLang records of the tokens of a request by the rows of the KV cache, by the argument that asks for it. A
#: retracted request is prefilled again, with the new weights, and into other rows: SGLang records all its tokens anew.
RECORDED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "enable_return_routed_experts": "the routed experts (router replay) of tokens that were sampled before the "
        "sync would be those of the new weights",
        "enable_return_indexer_topk": "the indexer top-k of tokens that were sampled before the sync would be those "
        "of the new weights",
        "enable_return_hidden_states": "a request that is prefilled again returns its hidden states twice, those of "
        "the new weights behind those of the old",
    }
)
#: With it, messages such as a pause reach the ranks of DP attention one by one, and not all at the same step.
LOCAL_CONTROL: Final = "enable_dp_attention_local_control_broadcast"
#: What works in SGLang's event loop alone, which a pause stops, and what SGLang waits for before it is idle: by the
#: argument that turns it on, the name by which ``Scheduler.is_fully_idle`` asks for it, and what it is.
STOPPED: Final = (
    ("enable_hierarchical_cache", "ongoing_write_through", "copies between the KV caches (hierarchical cache)"),
    ("enable_hisparse", "has_ongoing_staging", "requests on their way into the sparse cache (HiSparse)"),
    ("dllm_algorithm", "any_staging_reqs", "blocks of a diffusion language model"),
)
#: Sampling parameters that count the tokens generated so far: what leaves each without effect, and the class of
#: SGLang's that counts, from 0 again when a request is prefilled again.
COUNTING: Final[Mapping[str, tuple[float, str]]] = MappingProxyType(
    {
        "frequency_penalty": (0.0, "BatchedFrequencyPenalizer"),
        "presence_penalty": (0.0, "BatchedPresencePenalizer"),
        "repetition_penalty": (1.0, "BatchedRepetitionPenalizer"),  # not in 0.5.6 and 0.5.8, which do not heed it
        "min_new_tokens": (0, "BatchedMinNewTokensPenalizer"),
    }
)
_PENALTIES: Final = "sglang.srt.sampling.penaltylib"


def can_retract(scheduler: Any = None, arguments: Any = None) -> str | None:
    """Why requests cannot be retracted for a weight sync with the installed SGLang; None if they can.

    Args:
        scheduler: SGLang's ``Scheduler`` class; the one that this process has imported, if not given.
        arguments: the engine's ``ServerArgs``; reasons that lie in them are left out, if not given.
    """
    if scheduler is None:
        scheduler = importlib.import_module(SCHEDULER).Scheduler
    return _of_the_release(scheduler) or (None if arguments is None else _of_the_engine(scheduler, arguments))


def _of_the_release(scheduler: Any) -> str | None:
    pause = getattr(scheduler, "pause_generation", None)
    if pause is None:
        return "SGLang's Scheduler has no pause_generation"
    if "is_extend" not in _names(pause):
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


def _of_the_engine(scheduler: Any, arguments: Any) -> str | None:
    mode = getattr(arguments, "disaggregation_mode", "null") or "null"
    if mode != "null":
        return (
            f"the engine prefills and decodes in servers of their own (disaggregation_mode={mode}): a retracted "
            "request would go on with a KV cache of the old weights, or wait in a queue that SGLang counts as running"
        )
    for loop in event_loops(arguments):
        if ignores_pause(getattr(scheduler, loop, None)):
            return f"SGLang's {loop}, in which this engine runs ({_why(loop)}), goes on while the engine is paused"
    if getattr(arguments, "enable_dp_attention", False) and getattr(arguments, LOCAL_CONTROL, False):
        return f"data-parallel ranks take the pause at steps of their own, and wait for each other ({LOCAL_CONTROL})"
    for argument, loss in RECORDED.items():
        if getattr(arguments, argument, False):
            return f"{loss} ({argument})"
    asked = _names(getattr(scheduler, "is_fully_idle", None))
    for argument, name, what in STOPPED:
        if getattr(arguments, argument, None) and name in asked:
            return f"SGLang waits for {what}, which a paused engine does not end ({argument})"
    return None


def event_loops(arguments: Any) -> tuple[str, ...]:
    """The event loops in which an engine that is not disaggregated may run, as SGLang chooses between them."""
    if getattr(arguments, "enable_pdmux", False):
        return ("event_loop_pdmux",)
    if getattr(arguments, "pp_size", 1) > 1:
        return ("event_loop_pp",)
    return ("event_loop_overlap", "event_loop_normal")


def _why(loop: str) -> str:
    return {"event_loop_pp": "pp_size > 1", "event_loop_pdmux": "enable_pdmux"}.get(loop, "by default")


def ignores_pause(loop: Any) -> bool:
    """Whether an event loop runs on while its scheduler is paused; False for one that the release does not have."""
    return loop is not None and "_engine_paused" not in _names(loop)


def lost_with(requests: Iterable[Any]) -> str | None:
    """What one of the requests in flight would lose if it were retracted; None if nothing.

    Log-probs are not lost: SGLang keeps those of tokens and of the prompt as they were computed first.

    Args:
        requests: SGLang's ``GenerateReqInput`` of each.
    """
    for request in requests:
        if getattr(request, "input_embeds", None) is not None:
            return "a request with input_embeds would start anew, its tokens discarded and their log-probs kept"
        for name, (neutral, counter) in COUNTING.items():
            if _parameter(request, name, neutral) != neutral and _has(counter):
                return f"SGLang would forget the tokens that {name} has counted so far"
    return None


def _parameter(request: Any, name: str, neutral: float) -> Any:
    parameters = getattr(request, "sampling_params", None)
    value = parameters.get(name) if isinstance(parameters, Mapping) else getattr(parameters, name, None)
    return neutral if value is None else value


def _has(counter: str) -> bool:
    return hasattr(importlib.import_module(_PENALTIES), counter)


def _names(function: Any) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    return code.co_names if code is not None else ()
