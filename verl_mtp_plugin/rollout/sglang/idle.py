"""Weights reach SGLang when its engine is idle, whether or not the KV cache was released for it.

After each message of weights SGLang asserts that its cache can be flushed, which a step in flight forbids: the last
result of requests that were aborted, or that have just ended (overlapped scheduling), ends the scheduler. Every weight
goes through the tokenizer manager: over HTTP from the workers of hybrid, standalone and colocated servers alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ... import runtime
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
        await _wait(manager, memory, lock_is_ours=memory.door.retracted)
        return await original(manager, obj, *args, **kwargs)
    if getattr(obj, "abort_all_requests", False):
        manager.abort_request(abort_all=True)
    # As SGLang does where nobody has paused it: requests end, new ones wait. With the door closed it does not take the
    # lock itself.
    async with manager.model_update_lock.writer_lock:
        await memory.door.close(manager)
        try:
            await _wait(manager, memory, lock_is_ours=True)
            return await original(manager, obj, *args, **kwargs)
        finally:
            if not memory.released:  # by a release meanwhile, whose resume opens it
                await memory.door.open(manager)


async def wait(manager: Any) -> float:
    """Before the first weight of a sync: return when the paused engine is idle; the seconds that took.

    Raises:
        WeightSyncError: it stays busy.
    """
    memory = memory_of(manager)
    return await _wait(manager, memory, lock_is_ours=memory.door.retracted)


async def _wait(manager: Any, memory: Memory, *, lock_is_ours: bool) -> float:
    limit_s = runtime.settings().sync_drain_timeout_s
    return await (drain if memory.mtp else patience)(manager, limit_s, retracted=lock_is_ours)
