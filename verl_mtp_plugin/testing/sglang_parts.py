"""What a stand-in scheduler is made of: requests, batches, and memory that can be unmapped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class StandInFault(RuntimeError):
    """A fault that a test asked for, or what a GPU would do to a model whose memory is unmapped."""


class Request:
    """A request of which SGLang's abort and retract see what they look at."""

    def __init__(self, message: Any) -> None:
        self.message = message
        self.rid: str = message.rid
        self.limit: int = getattr(message.sampling_params, "max_new_tokens", None) or 8
        self.tokens: list[int] = []
        self.retractions = 0
        self.to_finish: Any = None
        self.done = False
        self.grammar = self.mamba_pool_idx = self.req_pool_idx = None
        self.kv = SimpleNamespace(holds_mamba=False, holds_kv=False, is_kv_released=True)
        self.output_ids = self.tokens
        self.weight_version_events: list[Any] = []
        self.cache_request_handle = None

    def finished(self) -> bool:
        return self.done

    def reset_for_retract(self) -> None:
        """It keeps its tokens, as SGLang's does."""


class Batch:
    """Running requests."""

    def __init__(self) -> None:
        self.reqs: list[Request] = []
        self.batch_is_full = False

    def is_empty(self) -> bool:
        return not self.reqs

    def filter_batch(self, *args: Any, **kwargs: Any) -> None:
        self.reqs = [request for request in self.reqs if not request.finished()]

    def retract_all(self, *args: Any, **kwargs: Any) -> list[Request]:
        retracted, self.reqs = self.reqs, []
        return retracted


class MemorySaver:
    """Which regions are unmapped, and everything that was asked of it."""

    def __init__(self) -> None:
        self.unmapped: set[str] = set()
        self.calls: list[tuple[str, str]] = []

    def pause(self, tag: str) -> None:
        self.calls.append(("pause", tag))
        if tag in self.unmapped:
            raise StandInFault(f"{tag} is unmapped already")
        self.unmapped.add(tag)

    def resume(self, tag: str) -> None:
        self.calls.append(("resume", tag))
        self.unmapped.remove(tag)


def nothing(*args: Any, **kwargs: Any) -> None:
    """Does nothing."""


class Nothing:
    """An object whose methods do nothing: those that are named, and no others."""

    def __init__(self, *methods: str) -> None:
        vars(self).update(dict.fromkeys(methods, nothing))
