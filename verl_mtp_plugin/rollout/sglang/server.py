"""``SGLangHttpServer`` releasing and resuming memory: what its methods do in the server's process, and their answers.

Servers of ranks above 0 have no tokenizer manager and do nothing; verl 0.7.1 asks them all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ... import runtime
from . import idle
from .drain import answered, in_flight
from .freed import KV_CACHE
from .memory import memory_of
from .pause import is_second, memory_for, message

Method = Callable[..., Awaitable[Any]]


async def release(original: Method, server: Any, *args: Any, **kwargs: Any) -> Any:
    """``release_kv_cache`` or ``sleep``: release what verl releases in this mode, once the engine is idle.

    Returns:
        drain_s: seconds until it was. freed_bytes: None if nobody can say. released: tags, none if nothing was.
        Without MTP what verl returns.

    Raises:
        WeightSyncError: the engine stays busy, and nothing was released; or it does not answer.
    """
    if is_second(server):
        return {"drain_s": 0.0, "freed_bytes": None, "released": []}
    memory = memory_for(server)
    if not memory.mtp:
        return await original(server, *args, **kwargs)
    before = set(memory.released)
    await original(server, *args, **kwargs)
    released = sorted(memory.released - before)
    return {
        "drain_s": memory.drain_s if released else 0.0,
        "freed_bytes": memory.freed_bytes if released else None,
        "released": released,
    }


async def resume(original: Method, server: Any, *args: Any, **kwargs: Any) -> Any:
    """``resume_kv_cache`` or ``wake_up``: take back what of it is released.

    Returns:
        resumed: tags, none if nothing was. Without MTP what verl returns.

    Raises:
        WeightSyncError: the engine does not answer.
    """
    if is_second(server):
        return {"resumed": []}
    memory, settings = memory_for(server), runtime.settings()
    if not memory.mtp:
        return await original(server, *args, **kwargs)
    before = set(memory.released)
    # verl flushes the cache after it, and would wait for that for ever.
    limit_s = settings.sync_drain_timeout_s + 2 * settings.sync_control_timeout_s
    await answered(original(server, *args, **kwargs), limit_s, "resume")
    return {"resumed": sorted(before - memory.released)}


async def release_kv_cache(server: Any) -> None:
    """The method that verl 0.7.1 does not have."""
    if not is_second(server) and server.config.free_cache_engine:
        request = message("ReleaseMemoryOccupationReqInput", tags=[KV_CACHE])
        await server.tokenizer_manager.release_memory_occupation(request, None)


async def resume_kv_cache(server: Any) -> None:
    """The method that verl 0.7.1 does not have."""
    if not is_second(server) and server.config.free_cache_engine:
        request = message("ResumeMemoryOccupationReqInput", tags=[KV_CACHE])
        await server.tokenizer_manager.resume_memory_occupation(request, None)
        await server.tokenizer_manager.flush_cache()


async def mtp_drain(server: Any) -> float:
    """Before weights are written with the cache in place: return when the paused engine is idle; seconds.

    Raises:
        WeightSyncError: it stays busy, and nothing was written.
    """
    return 0.0 if is_second(server) else await idle.wait(server.tokenizer_manager)


async def mtp_hold(server: Any, reason: str) -> None:
    """Serve no requests until this is called with "", whoever resumes generation: the weights may be half-written."""
    if not is_second(server):
        memory_for(server).held = reason


async def mtp_status(server: Any) -> dict[str, Any]:
    """What this process knows of its engine, which is not asked: paused, released, in_flight, global_steps."""
    manager = None if is_second(server) else server.tokenizer_manager
    return {
        "paused": bool(manager is not None and manager.is_pause),
        "released": sorted(memory_of(manager).released) if manager is not None else [],
        "in_flight": in_flight(manager) if manager is not None else 0,
        "global_steps": getattr(server, "global_steps", None),  # not in verl's git before 0.7.1
    }


async def mtp_load_format(server: Any) -> str | None:
    """How this server has loaded its drafter: SGLang's ``load_format``, or the one of the draft model alone."""
    manager = None if is_second(server) else server.tokenizer_manager
    arguments = getattr(manager, "server_args", None)
    own = getattr(arguments, "speculative_draft_load_format", None)  # not in every release
    found = own or getattr(arguments, "load_format", None) or server.config.load_format
    return None if found is None else str(getattr(found, "value", found))
