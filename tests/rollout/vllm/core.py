"""vLLM's engine core as far as a weight sync sees it: requests, a pause, and memory that can be gone.

The rules are vLLM's (``v1/engine/core.py``, ``v1/executor/abstract.py``, ``v1/worker/gpu_worker.py`` of 0.12, 0.24 and
0.33), in our words: sleep level 1 brings weights back, level 2 forgets them; waking a tag that is not asleep makes the
whole call do nothing; a model that runs without its memory ends the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

#: What is in memory that was mapped anew and not written since.
GARBAGE = -1
TAGS = frozenset({"weights", "kv_cache"})
#: Bytes of each.
SIZES = {"weights": 1000, "kv_cache": 30_000}


@dataclass
class Request:
    """One request: each step gives one token and the drafts that the target accepts."""

    name: str
    limit: int
    tokens: list[int] = field(default_factory=list)


@dataclass
class Stats:
    """``SpecDecodingStats``."""

    num_spec_tokens: int
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


class Core:
    """Scheduler, executor and worker of one engine."""

    def __init__(self, drafts_per_step: int = 0) -> None:
        self.drafts_per_step = drafts_per_step
        self.weights = {"target": 1, "drafter": 1}  # version of each
        self.saved: dict[str, int] = {}
        self.asleep: set[str] = set()
        self.paused = False
        self.queue: dict[str, Request] = {}
        self.finished: list[tuple[Request, str]] = []
        self.dead = ""
        self.calls: list[str] = []  # what moved memory, in order
        self.total = Stats(drafts_per_step)

    @property
    def free_bytes(self) -> int:
        return 5000 + sum(SIZES[tag] for tag in self.asleep)

    # -- memory ---------------------------------------------------------------------------------------------------

    def sleep(self, level: int) -> None:
        if self.asleep:
            return
        self.calls.append(f"sleep {level}")
        self.saved = dict(self.weights) if level == 1 else {}
        self.weights = dict.fromkeys(self.weights, GARBAGE)
        self.asleep = set(TAGS)

    def wake_up(self, tags: list[str] | None) -> None:
        if not self.asleep or not set(tags or ()) <= self.asleep:
            return
        tags = list(tags or self.asleep)
        self.calls.append(f"wake_up {' '.join(sorted(tags))}")
        self.asleep -= set(tags)
        if "weights" in tags:
            self.weights.update(self.saved)

    def release_kv_cache_memory(self) -> None:
        if not self.paused or self.queue:
            raise RuntimeError("release_kv_cache_memory() requires a completed pause first")
        if self.asleep:
            raise RuntimeError("release_kv_cache_memory() requires all executor memory to be resident")
        self.calls.append("release_kv_cache_memory")
        self.asleep = {"kv_cache"}

    # -- requests -------------------------------------------------------------------------------------------------

    def abort_all(self) -> None:
        self.finished += [(request, "abort") for request in self.queue.values()]
        self.queue.clear()

    def abort(self, names: list[str]) -> None:
        self.finished += [(self.queue.pop(name), "abort") for name in names if name in self.queue]

    def step(self) -> tuple[list[tuple[Request, str]], Any]:
        """One step: what has finished, and ``SchedulerStats``."""
        stats = Stats(self.drafts_per_step)
        if self.queue and not self.paused:
            if self.asleep:
                self.dead = f"CUDA error: an illegal memory access ({', '.join(sorted(self.asleep))})"
                raise RuntimeError(self.dead)
            for request in list(self.queue.values()):
                self._advance(request, stats)
        finished, self.finished = self.finished, []
        return finished, SimpleNamespace(spec_decoding_stats=stats if stats.num_drafts else None)

    def _advance(self, request: Request, stats: Stats) -> None:
        if request.tokens and self.drafts_per_step:
            accepted = len(request.tokens) % (self.drafts_per_step + 1)
            for counted in (stats, self.total):
                counted.num_drafts += 1
                counted.num_draft_tokens += self.drafts_per_step
                counted.num_accepted_tokens += accepted
            request.tokens += [self.weights["target"]] * accepted
        request.tokens.append(self.weights["target"])
        if len(request.tokens) >= request.limit:
            self.finished.append((self.queue.pop(request.name), "length"))
