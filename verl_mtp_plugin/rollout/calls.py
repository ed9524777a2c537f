"""Calls to many replicas at once: every answer or failure, a limit in time, and a cancellation that waits its turn."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from .interrupt import GRACE_S

Key = TypeVar("Key")


class UnfinishedError(RuntimeError):
    """A call has not returned. What it was to do may still happen."""


class UnansweredError(UnfinishedError):
    """A call did not return in time."""


class StoppedError(UnfinishedError):
    """A call was not waited for, since the sync was cancelled."""


class Cancellation:
    """Remembers that the task was cancelled while it was doing what must not be left half done.

    A cancellation waits its turn. An interrupt (Ctrl-C) is one after which nothing is waited for longer than a grace.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.asked = self.interrupted = False
        self._grace_s = grace_s
        self._until = math.inf  # for what is waited for now, by the loop's clock
        self._news: asyncio.Future[None] | None = None

    def interrupt(self) -> None:
        """Called in the event loop of the sync; a second time nothing is waited for at all."""
        if self.interrupted:
            self._grace_s = 0.0
        self.asked = self.interrupted = True
        self._until = asyncio.get_running_loop().time() + self._grace_s
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)

    def begin(self, limit_s: float) -> None:
        """Something is waited for from now on, this many seconds at most."""
        self._until = asyncio.get_running_loop().time() + (min(limit_s, self._grace_s) if self.interrupted else limit_s)

    @property
    def left_s(self) -> float:
        """Seconds that are left of that."""
        return self._until - asyncio.get_running_loop().time()

    def news(self) -> set[asyncio.Future[None]]:
        """What is done when an interrupt comes; nothing after the second."""
        if self.interrupted and not self._grace_s:
            return set()
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        return {self._news}


@dataclass(slots=True)
class Outcomes(Generic[Key]):
    """What came of each call, and how long the slowest of those that returned took."""

    answers: dict[Key, Any] = field(default_factory=dict)
    failures: dict[Key, BaseException] = field(default_factory=dict)
    seconds: float = 0.0


async def call_all(
    calls: Mapping[Key, Callable[[], Awaitable[Any]]], limit_s: float, cancellation: Cancellation, *, stop: bool = False
) -> Outcomes[Key]:
    """Start all calls together and wait for them.

    Nothing is raised: a call that raises is a failure, one that does not return within ``limit_s`` seconds is an
    :class:`UnansweredError`. Being cancelled is noted in ``cancellation`` and does not reach the calls; with ``stop``
    they are then waited for no longer (:class:`StoppedError`), and after an interrupt no call is for longer than its
    grace.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    cancellation.begin(limit_s)
    tasks = {asyncio.ensure_future(_run(call)): key for key, call in calls.items()}
    pending = set(tasks)
    while pending and not (stop and cancellation.asked):
        left = cancellation.left_s
        if left <= 0:
            break
        try:
            await asyncio.wait({*pending, *cancellation.news()}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            cancellation.asked = True
        pending = {task for task in pending if not task.done()}
    outcomes: Outcomes[Key] = Outcomes(seconds=loop.time() - start)
    for task, key in tasks.items():
        if task in pending:
            task.cancel()
            task.add_done_callback(_retrieve)
            stopped = stop and cancellation.asked
            outcomes.failures[key] = (
                StoppedError("not waited for: the sync was cancelled")
                if stopped
                else UnansweredError(_unanswered(limit_s, cancellation))
            )
        elif task.cancelled():
            outcomes.failures[key] = StoppedError("cancelled from outside")
        elif (error := task.exception()) is not None:
            outcomes.failures[key] = error
        else:
            outcomes.answers[key] = task.result()
    return outcomes


def _unanswered(limit_s: float, cancellation: Cancellation) -> str:
    return "no answer when it was interrupted" if cancellation.interrupted else f"no answer after {limit_s:g} s"


def each(keys: Iterable[Key], action: Callable[[Key], Awaitable[Any]]) -> dict[Key, Callable[[], Awaitable[Any]]]:
    """The same call for every key."""
    return {key: partial(action, key) for key in keys}


async def _run(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at the exception of a task that nobody waits for, so that asyncio does not complain of it."""
    if not task.cancelled():
        task.exception()
