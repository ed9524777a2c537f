"""Acceptance with vLLM, which counts drafts for its whole engine and step by step, never by request.

A stat logger in the server's process adds the engine's numbers up, and every request that ends takes with it what
has been added since the last one ended. The numbers of one sample are then not its own, but the sums of a training
step are the engine's, and the metrics are made of sums alone. vLLM records a step before the requests that end with it
are told, so what the last request takes is complete.

The logger is given to engines that draft, not registered as ``vllm.stat_logger_plugins``: an entry point would act in
every vLLM of the environment, also without verl and with this plugin off, and turns statistics on there.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any, Final

from .. import acceptance
from ..acceptance import NOTHING, Counts


class Ledger:
    """What the engine of this process has counted and no request has taken yet. Used on one event loop."""

    def __init__(self) -> None:
        self._counts = NOTHING

    def record(self, stats: Any) -> None:
        """Add one scheduler step (vLLM's ``SpecDecodingStats``, or None)."""
        if stats is not None:
            self._counts += Counts(stats.num_draft_tokens, stats.num_accepted_tokens, stats.num_drafts)

    def take(self) -> Counts:
        """All of it."""
        counts, self._counts = self._counts, NOTHING
        return counts


LEDGER: Final = Ledger()


@dataclass(frozen=True, slots=True)
class RequestStats:
    """What verl (>= 0.8) looks for at a finished request, of which no vLLM up to 0.33 has one."""

    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_verify_steps: int = 0


def request_stats(original: Any) -> Any:
    """``RequestStateStats.request_spec_decode_stats``: nothing known, where verl 0.8.0 ends in an AttributeError."""
    return property(lambda stats: RequestStats())


def share(fields: MutableMapping[str, Any]) -> None:
    """Put the engine's counts since the last request into this one's ``extra_fields``."""
    known = acceptance.of_fields(fields)
    if known is None or known.verify == 0:  # else vLLM has told its own
        acceptance.write(fields, LEDGER.take())


def init_engine(original: Any, *args: Any, **kwargs: Any) -> None:
    """``AsyncLLM.__init__``, with the stat logger where the engine drafts."""
    bound = signature(original).bind(*args, **kwargs)
    if getattr(bound.arguments["vllm_config"], "speculative_config", None):
        bound.arguments["stat_loggers"] = [*(bound.arguments.get("stat_loggers") or ()), _logger_class()]
    original(*bound.args, **bound.kwargs)


def _logger_class() -> type[Any]:
    base: type[Any] = import_module("vllm.v1.metrics.loggers").StatLoggerBase

    class AcceptanceLogger(base):
        """Adds up what the scheduler reports."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, *args: Any, **kwargs: Any) -> None:
            LEDGER.record(getattr(scheduler_stats, "spec_decoding_stats", None))

        def log_engine_initialized(self) -> None:
            pass

    return AcceptanceLogger
