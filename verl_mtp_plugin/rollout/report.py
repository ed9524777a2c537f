"""What a weight sync is asked for, and what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .replica import Paused, Released

_GIB: Final = 2**30
PREFIX: Final = "weight_sync/"


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """Limits in seconds are for all replicas together: they are asked at the same time."""

    free_cache_engine: bool = True  # whether the KV cache is released for the transfer
    drain_timeout_s: float = 60.0
    control_timeout_s: float = 60.0  # pause, release, resume, version, finalize: each
    transfer_timeout_s: float = 1800.0  # one attempt
    retries: int = 1  # attempts after the first
    version: int | None = None  # training step of the weights; None: not known, so nothing to compare


@dataclass(slots=True)
class SyncReport:
    """Seconds of each step (the slowest replica's), and sums over all replicas."""

    pause_s: float = 0.0
    drain_s: float = 0.0
    kv_release_s: float = 0.0
    transfer_s: float = 0.0  # all attempts
    kv_resume_s: float = 0.0
    kv_freed_bytes: int | None = None  # None: no engine said
    aborted_requests: int | None = None
    retries: int = 0
    upstream: Any = None  # what verl's own transfer returned

    def add_aborted(self, paused: Sequence[Paused]) -> None:
        """Count the requests that were aborted, as far as the engines say."""
        self.aborted_requests = _total([answer.aborted for answer in paused])

    def add_released(self, released: Sequence[Released], seconds: float) -> None:
        """Take over what a release of ``seconds`` has said; where it waited until idle first, that counts as drain."""
        waited = min(seconds, max((answer.drain_s for answer in released), default=0.0))
        self.drain_s += waited
        self.kv_release_s = seconds - waited
        self.kv_freed_bytes = _total([answer.freed_bytes for answer in released])

    def metrics(self) -> dict[str, float]:
        """For verl's tracker. What no engine reports is left out, rather than given as zero."""
        values: dict[str, float | None] = {
            "pause_s": self.pause_s,
            "drain_s": self.drain_s,
            "kv_release_s": self.kv_release_s,
            "transfer_s": self.transfer_s,
            "kv_resume_s": self.kv_resume_s,
            "kv_freed_gib": None if self.kv_freed_bytes is None else self.kv_freed_bytes / _GIB,
            "aborted_requests": self.aborted_requests,
            "retries": self.retries,
        }
        return {PREFIX + name: float(value) for name, value in values.items() if value is not None}


def _total(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
