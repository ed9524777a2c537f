"""``vLLMHttpServer`` during a weight sync, in the server's process: who is let in, pause, and resume."""

from __future__ import annotations

from typing import Any

from ...errors import WeightSyncError
from .. import acceptance
from . import acceptance as engine_acceptance
from .control import admitted, close, control_of, name_of


async def generate(original: Any, server: Any, *args: Any, **kwargs: Any) -> Any:
    """One request: let in while the server is not paused, and given its share of the engine's acceptance."""
    output = await admitted(server, lambda: original(server, *args, **kwargs))
    if acceptance.asks_for_mtp(server.config):
        engine_acceptance.share(output.extra_fields)
    return output


async def abort_all_requests(original: Any, server: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Pause. A pause that failed is an error: verl before 0.9.1 returns it in a dict that nobody reads.

    Raises:
        WeightSyncError: the engine could not be paused.
    """
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
    """Resume the engine, then let requests in.

    Raises:
        WeightSyncError: the KV cache has not been taken back: a request would end the engine.
    """
    if server.node_rank != 0:
        return await original(server, *args, **kwargs)
    control = control_of(server)
    async with control.memory:
        if control.asleep:
            raise WeightSyncError(
                replicas=(name_of(server),),
                step="resume_generation",
                found=f"{name_of(server)}, asked to serve without {' and '.join(control.asleep)}",
                expected="resume_kv_cache before resume_generation",
                advice="Restart the server if its memory cannot be taken back.",
            )
        result = await original(server, *args, **kwargs)
    control.open.set()
    return result
