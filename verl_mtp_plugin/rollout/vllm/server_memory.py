"""``vLLMHttpServer``'s KV cache during a weight sync, in the server's process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ... import runtime
from ...errors import WeightSyncError
from . import kv_cache, memory
from .control import busy, close, control_of, is_closed, name_of, pauses_in_core, uses_mtp

logger = logging.getLogger(__name__)

#: verl's name of the mode in which a server shares its GPU with others that put it to sleep themselves.
COLOCATED: Final = "COLOCATED"


def _keeps_cache(server: Any) -> str:
    """Why this server's KV cache stays where it is; "" if it can be released."""
    if server.node_rank != 0:
        return "its engine runs on the first node"
    if not server.config.free_cache_engine:
        return "free_cache_engine is off"
    if getattr(server.rollout_mode, "name", "") == COLOCATED:
        return "a colocated server sleeps and wakes as a whole"
    if not server.config.enable_sleep_mode:
        return "vLLM was started without enable_sleep_mode"
    return ""


async def release_kv_cache(original: Any, server: Any, *args: Any, **kwargs: Any) -> Any:
    """Free the KV cache of a paused server; weights of target and drafter stay.

    Returns:
        drain_s (seconds), freed_bytes (None: not known), released (vLLM's tags; empty: the cache stays). Without MTP
        what verl returns.

    Raises:
        WeightSyncError: the server has requests and is not paused, or is not empty in time: nothing was released. Or
            vLLM failed.
    """
    if not uses_mtp(server):
        return await original(server, *args, **kwargs)
    kept = _keeps_cache(server)
    if kept:
        logger.debug("%s keeps its KV cache: %s", name_of(server), kept)
        return {"drain_s": 0.0, "freed_bytes": None, "released": []}
    control = control_of(server)
    async with control.memory:
        await _require_pause(server)
        drain_s = await kv_cache.drain(server, name_of(server), runtime.settings().sync_drain_timeout_s)
        before = memory.free_bytes()
        with _failing(server, "kv_release"):
            await kv_cache.release(server.engine, control.asleep)
        after = memory.free_bytes()
    freed = None if before is None or after is None else after - before
    return {"drain_s": drain_s, "freed_bytes": freed, "released": list(control.asleep)}


@contextmanager
def _failing(server: Any, step: str) -> Iterator[None]:
    """Name the replica and what is left to do in an error of vLLM's."""
    try:
        yield
    except Exception as error:
        left = " and ".join(control_of(server).asleep) or "nothing"
        raise WeightSyncError(
            replicas=(name_of(server),),
            step=step,
            found=f"{name_of(server)}, whose vLLM failed in {step}: {type(error).__name__}: {error}",
            expected="its KV cache released or back",
            advice=f"resume_kv_cache will try to wake up {left}.",
        ) from error


async def _require_pause(server: Any) -> None:
    """A server that nobody has paused and that has nothing to do is paused until its cache is back."""
    if not is_closed(server) and not busy(server):
        await close(server)
        if pauses_in_core(server.engine):
            await server.engine.pause_generation(clear_cache=False)
        control_of(server).wanted_open = True
        return
    if not is_closed(server):
        raise WeightSyncError(
            replicas=(name_of(server),),
            step="kv_release",
            found=f"{name_of(server)}, asked to release its KV cache while it serves",
            expected="abort_all_requests before release_kv_cache",
            advice="Nothing was released.",
        )
    if pauses_in_core(server.engine) and not await server.engine.is_paused():
        await server.engine.pause_generation(clear_cache=False)  # when its memory came back it resumed by itself


async def resume_kv_cache(original: Any, server: Any, *args: Any, **kwargs: Any) -> Any:
    """Take back what was released; nothing and a warning if that is nothing.

    Returns:
        resumed: vLLM's tags. Without MTP what verl returns.

    Raises:
        WeightSyncError: vLLM failed.
    """
    if not uses_mtp(server):
        return await original(server, *args, **kwargs)
    if _keeps_cache(server):
        return {"resumed": []}
    control = control_of(server)
    async with control.memory:
        if not control.asleep:
            logger.debug("%s has released nothing: nothing to resume", name_of(server))
            return {"resumed": []}
        with _failing(server, "kv_resume"):
            resumed = await kv_cache.resume(server.engine, control.asleep)
            await server.clear_kv_cache()  # what the prefix cache points to is gone
            if control.wanted_open and not control.held:
                await server.engine.resume_generation()
                control.wanted_open = False
                control.open.set()
    return {"resumed": resumed}
