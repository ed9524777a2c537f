"""Weights reach SGLang when its engine is idle, whether or not the KV cache was released for it.

After each message of weights SGLang asserts that its cache can be flushed, which a step in flight forbids: the last
result of requests that were aborted, or that have just ended (overlapped scheduling), ends the scheduler. Every weight
goes through the tokenizer manager: over HTTP from the workers of hybrid, standalone and colocated servers alike.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from ... import runtime
from ...view import View
from .drain import drain, patience
from .memory import Memory, memory_of


async def update(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
    """``TokenizerManager.update_weights_from_...``, once the engine is idle.

    Raises:
        WeightSyncError: the engine stays busy; no weight was written by this message.
    """
    memory = memory_of(manager)
    if not getattr(obj, "flush_cache", True):  # nothing is asserted
        return await original(manager, obj, *args, **kwargs)
    if manager.is_pause:
        await _wait(manager, memory, lock_is_ours=_callers_stay(memory))
        return await original(manager, obj, *args, **kwargs)
    if getattr(obj, "abort_all_requests", False):
        manager.abort_request(abort_all=True)
    # As SGLang does where nobody has paused it: requests end, new ones wait. Whoever pauses meanwhile holds the pause's
    # condition until this lock is free, so nothing that holds the lock may wait for the condition.
    async with manager.model_update_lock.writer_lock:
        await _wait(manager, memory, lock_is_ours=True)
        return await original(_with_the_lock(manager), obj, *args, **kwargs)


def _with_the_lock(manager: Any) -> Any:
    """The manager as SGLang's method sees it when it has taken the writer's lock of an engine that is not paused."""
    taken = View(manager.model_update_lock, writer_lock=contextlib.nullcontext())
    return View(manager, is_pause=False, is_pause_cond=asyncio.Condition(), model_update_lock=taken)


def _callers_stay(memory: Memory) -> bool:
    """Whether those who wait for answers in a paused engine keep the reader's lock, and say nothing of who runs.

    Without MTP anybody may have paused, in a mode in which requests stay; upstream looks at no lock there.
    """
    return memory.door.retracted or not memory.mtp


async def wait(manager: Any) -> float:
    """Before the first weight of a sync: return when the paused engine is idle; the seconds that took.

    Raises:
        WeightSyncError: it stays busy.
    """
    memory = memory_of(manager)
    return await _wait(manager, memory, lock_is_ours=_callers_stay(memory))


async def _wait(manager: Any, memory: Memory, *, lock_is_ours: bool) -> float:
    limit_s = runtime.settings().sync_drain_timeout_s
    return await (drain if memory.mtp else patience)(manager, limit_s, retracted=lock_is_ours)
