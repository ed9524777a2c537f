"""What an SGLang engine has given back, and the guard in front of its two calls that give back and take.

SGLang's scheduler ends itself when memory is released while it runs, and when something is resumed that was not
released. So the tokenizer manager, through which every such call goes (verl's server, and over HTTP its workers),
drains first, remembers, and asks for nothing that SGLang would die of.

A job without MTP has not asked for this: there the same calls wait for an idle engine too, but nothing is refused,
limited in time, held back at the door or logged; after the wait it is SGLang's business again.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from ... import runtime
from . import freed
from .door import Door
from .drain import answered, drain, patience

logger = logging.getLogger(__name__)
logger.setLevel(logging.WARNING)  # SGLang sets the root's level to its own, which verl sets to "error"

_NAME: Final = "_verl_mtp_memory"


@dataclass
class Memory:
    """Kept as an attribute of the tokenizer manager. Everything happens in its event loop."""

    released: set[str] = field(default_factory=set)  # tags: from when a release is sent until its resume is answered
    running: asyncio.Task[Any] | None = None  # the last release or resume; it ends, whoever waits for it
    doing: str = ""  # which of them that is
    door: Door = field(default_factory=Door)
    mtp: bool = True  # whether the job uses MTP; only then may a call fail that upstream would make
    held: str = ""  # why its weights must not be served, whoever asks for it
    given_up: bool = False  # whoever asked for the release wants its memory back instead
    drain_s: float = 0.0  # of the last release
    freed_bytes: int | None = None  # by the last release


def memory_of(manager: Any) -> Memory:
    """The memory of a ``TokenizerManager``, made on first use."""
    return vars(manager).setdefault(_NAME, Memory())


async def release(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
    """``TokenizerManager.release_memory_occupation``, once the engine is idle, for what is not released already.

    Raises:
        WeightSyncError: the engine stays busy, or does not answer.
    """
    memory, settings = memory_of(manager), runtime.settings()

    async def work() -> None:
        tags = [tag for tag in asked(obj) if tag not in memory.released]
        memory.given_up, memory.drain_s, memory.freed_bytes = False, 0.0, None
        if not tags:
            logger.debug("%s released already: nothing to do", _list(memory.released))  # verl sleeps twice at times
            return
        memory.drain_s = await _empty(manager, memory, settings.sync_drain_timeout_s)
        before = await freed.reading(manager) if memory.mtp else None
        memory.released.update(tags)  # before it is sent: if no answer comes, it must be taken for done
        await original(manager, _narrowed(obj, tags), *args, **kwargs)
        if before is not None:
            memory.freed_bytes = freed.since(before, tags)
            _watch(manager, memory, settings.sync_control_timeout_s)

    await _in_turn(memory, work(), settings.sync_drain_timeout_s + settings.sync_control_timeout_s, "release")


async def resume(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
    """``TokenizerManager.resume_memory_occupation`` for what is released, and for nothing else.

    Raises:
        WeightSyncError: the engine does not answer.
    """
    memory, settings = memory_of(manager), runtime.settings()
    memory.given_up = True

    async def work() -> None:
        tags = [tag for tag in asked(obj) if tag in memory.released]
        left_out = [tag for tag in obj.tags or () if tag not in memory.released]
        if memory.mtp and (left_out or not tags):
            logger.warning("verl-mtp-plugin: resume of %s, which is not released: left out", _list(left_out))
        manager.auto_create_handle_loop()
        if tags:
            await original(manager, _narrowed(obj, tags), *args, **kwargs)
            memory.released.difference_update(tags)
        if memory.released or memory.held:
            return
        if memory.door.wanted_open:
            await open_for_verl(manager)
            memory.door.opened()
        else:
            await memory.door.open(manager)

    await _in_turn(memory, work(), settings.sync_control_timeout_s, "resume")


async def open_for_verl(manager: Any) -> None:
    """What verl's ``resume_generation`` does."""
    message = sys.modules["sglang.srt.managers.io_struct"].ContinueGenerationReqInput
    await manager.continue_generation(message())


async def _empty(manager: Any, memory: Memory, limit_s: float) -> float:
    """Close the door and wait until the engine is idle. If it does not get there the door is as it was."""
    if not memory.mtp:
        return await patience(manager, limit_s)
    await memory.door.close(manager)
    try:
        return await drain(manager, limit_s, retracted=memory.door.retracted, given_up=lambda: memory.given_up)
    except BaseException:
        if not memory.released:  # by an earlier call
            await memory.door.open(manager)
        raise


async def _in_turn(memory: Memory, work: Coroutine[Any, Any, None], limit_s: float, what: str) -> None:
    """Do ``work`` after the operation before it. It runs to its end even if its caller stops waiting.

    Raises:
        WeightSyncError: the one before it, or ``work``, is not done within ``limit_s`` seconds.
    """
    try:
        while memory.running is not None and not memory.running.done():
            limit = limit_s if memory.mtp else None
            await answered(_ended(memory.running), limit, f"the {memory.doing} before this {what}")
    except BaseException:
        work.close()
        raise
    memory.running, memory.doing = asyncio.ensure_future(work), what
    await answered(memory.running, limit_s if memory.mtp else None, what)


async def _ended(task: asyncio.Task[Any]) -> None:
    await asyncio.wait({task})


def _watch(manager: Any, memory: Memory, after_s: float) -> None:
    """Say so once if requests wait for memory that nobody takes back; without this package the engine would die."""

    def look() -> None:
        waiting = memory.door.waiting(manager) if memory.door.closed and memory.released else 0
        if waiting:
            logger.warning(
                "verl-mtp-plugin: %d requests wait at an SGLang server that sleeps (released: %s). They go on when its "
                "memory is resumed (update_weights, wake_up or resume_kv_cache).",
                waiting,
                _list(memory.released),
            )

    asyncio.get_running_loop().call_later(after_s, look)


def asked(obj: Any) -> list[str]:
    """The tags of SGLang's message; none means all."""
    return list(obj.tags or sys.modules["sglang.srt.constants"].GPU_MEMORY_ALL_TYPES)


def _narrowed(obj: Any, tags: list[str]) -> Any:
    narrowed = copy.copy(obj)
    narrowed.tags = tags
    return narrowed


def _list(tags: Any) -> str:
    return ", ".join(sorted(tags)) or "nothing"
