"""``vLLMHttpServer`` during a weight sync, in the server's process: who is let in, pause, and resume.

Without MTP all of it is verl's.
"""

from __future__ import annotations

from typing import Any

from ... import runtime
from ...errors import WeightSyncError
from .. import acceptance
from . import acceptance as engine_acceptance
from . import kv_cache
from .control import admitted, close, control_of, is_closed, name_of, uses_mtp


async def generate(original: Any, server: Any, *args: Any, **kwargs: Any) -> Any:
    """One request: let in while the server is not paused, and given its share of the engine's acceptance."""
    if not uses_mtp(server):
        return await original(server, *args, **kwargs)
    output = await admitted(server, lambda: original(server, *args, **kwargs))
    if acceptance.asks_for_mtp(server.config):
        engine_acceptance.share(output.extra_fields)
    return output


async def abort_all_requests(original: Any, server: Any, *args: Any, **kwargs: Any) -> Any:
    """Pause. A pause that failed is an error: verl before 0.9.1 returns it in a dict that nobody reads.

    Raises:
        WeightSyncError: the engine could not be paused.
    """
    if not uses_mtp(server):
        return await original(server, *args, **kwargs)
    if server.node_rank != 0:  # its engine runs on the first node
        return {"aborted": 0, "aborted_count": 0, "request_ids": []}
    await close(server)
    try:
        result: dict[str, Any] = await original(server, *args, **kwargs)
        if result.get("error"):
            raise RuntimeError(result["error"])
    except Exception as error:
        raise WeightSyncError(
            replicas=(name_of(server),),
            step="pause",
            found=f"{name_of(server)}, which could not be paused: {error}",
            expected="no request running while weights are replaced",
            advice="The message is vLLM's; weights and KV cache are as they were.",
        ) from error
    return {**result, "aborted": result.get("aborted_count", 0)}


async def resume_generation(original: Any, server: Any, *args: Any, **kwargs: Any) -> Any:
    """Resume the engine, then let requests in; where its KV cache has not been taken back, once it has.

    Raises:
        WeightSyncError: its weights may be half-written.
    """
    if not uses_mtp(server) or server.node_rank != 0:
        return await original(server, *args, **kwargs)
    control = control_of(server)
    async with control.memory:
        if control.held:
            raise WeightSyncError(
                replicas=(name_of(server),),
                step="resume_generation",
                found=f"{name_of(server)}, asked to serve, but {control.held}",
                expected="complete weights before generation is resumed",
                advice="Take it out with the manager's remove_replicas(), or start the job from its last checkpoint.",
            )
        if control.asleep:
            control.wanted_open = True
            return None
        result = await original(server, *args, **kwargs)
    control.open.set()
    return result


async def mtp_drain(original: Any, server: Any) -> float:
    """Before weights are written with the cache in place: return when the paused engine is empty; seconds.

    Raises:
        WeightSyncError: it is not in time, and nothing was written.
    """
    if server.node_rank != 0 or not is_closed(server):
        return 0.0
    return await kv_cache.drain(server, name_of(server), runtime.settings().sync_drain_timeout_s)


async def mtp_hold(original: Any, server: Any, reason: str) -> None:
    """Serve no requests until this is called with "", whoever resumes generation: the weights may be half-written."""
    control_of(server).held = reason
