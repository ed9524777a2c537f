"""Calls to many replicas at once: every answer or failure, a limit in time, and a cancellation that waits its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")


class UnfinishedError(RuntimeError):
    """A call has not returned. What it was to do may still happen."""


class UnansweredError(UnfinishedError):
    """A call did not return in time."""


class StoppedError(UnfinishedError):
    """A call was not waited for, since the sync was cancelled."""


class Cancellation:
    """Remembers that the task was cancelled while it was doing what must not be left half done."""

    def __init__(self) -> None:
        self.asked = False


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
    they are then waited for no longer (:class:`StoppedError`).
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    tasks = {asyncio.ensure_future(_run(call)): key for key, call in calls.items()}
    pending = set(tasks)
    while pending and not (stop and cancellation.asked):
        left = start + limit_s - loop.time()
        if left <= 0:
            break
        try:
            _, pending = await asyncio.wait(pending, timeout=left)
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
                else UnansweredError(f"no answer after {limit_s:g} s")
            )
        elif task.cancelled():
            outcomes.failures[key] = StoppedError("cancelled from outside")
        elif (error := task.exception()) is not None:
            outcomes.failures[key] = error
        else:
            outcomes.answers[key] = task.result()
    return outcomes


def each(keys: Iterable[Key], action: Callable[[Key], Awaitable[Any]]) -> dict[Key, Callable[[], Awaitable[Any]]]:
    """The same call for every key."""
    return {key: partial(action, key) for key in keys}


async def _run(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at the exception of a task that nobody waits for, so that asyncio does not complain of it."""
    if not task.cancelled():
        task.exception()
