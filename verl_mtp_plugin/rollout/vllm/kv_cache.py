"""Give the KV cache back and take it again, whatever calls the installed vLLM has for it. Weights stay.

vLLM's ``sleep`` knows two levels: 1 moves all weights to the CPU and back, the drafter's too, 2 forgets them. Level 2
is what verl 0.9.1 takes without MTP, and then a transfer that fails leaves nothing to go on with; so it is 1 here, or
vLLM's own release of the cache alone (``release_kv_cache_memory``, vllm #44890), which moves no weights at all.
"""

from __future__ import annotations

import asyncio
import time
from inspect import signature
from typing import Any

from ...errors import WeightSyncError
from .control import busy, pauses_in_core

#: Seconds between two looks at an engine that is not empty yet.
POLL_S = 0.05


async def drain(server: Any, name: str, timeout_s: float) -> float:
    """Wait until no request is in the paused engine; the seconds that took.

    Requests that were on their way when it was paused are aborted as they arrive.

    Raises:
        WeightSyncError: the engine is not paused, or not empty after ``timeout_s``.
    """
    engine = server.engine
    start = time.monotonic()
    while busy(server):
        if time.monotonic() - start > timeout_s:
            raise WeightSyncError(
                replicas=(name,),
                step="drain",
                found=f"{name} with requests still running {timeout_s:g} s after it was paused",
                expected="an empty engine before its KV cache is released",
                advice="Nothing was released. Raise mtp.plugin.sync_drain_timeout_s if requests take that long to end.",
            )
        if pauses_in_core(engine):
            await engine.pause_generation(clear_cache=False)
        elif engine.output_processor.has_unfinished_requests():
            await engine.abort(list(engine.output_processor.request_states))
        await asyncio.sleep(POLL_S)
    left = max(1, round(timeout_s - (time.monotonic() - start)))
    await engine.wait_for_requests_to_drain(left)  # engines of other data-parallel ranks
    return time.monotonic() - start


async def release(engine: Any, asleep: list[str]) -> None:
    """Free the cache's memory. ``asleep`` holds at every moment what :func:`resume` has to wake up.

    Raises:
        Exception: vLLM's own.
    """
    if asleep:
        return
    if hasattr(engine, "release_kv_cache_memory"):
        asleep[:] = ["kv_cache"]
        await engine.release_kv_cache_memory()
        return
    asleep[:] = ["weights", "kv_cache"]
    await engine.sleep(level=1)
    await engine.wake_up(tags=["weights"])
    asleep[:] = ["kv_cache"]


async def resume(engine: Any, asleep: list[str]) -> list[str]:
    """Wake up what is asleep; the tags.

    Raises:
        RuntimeError: vLLM says that memory is still missing.
    """
    tags = list(asleep)
    if await engine.wake_up(tags=tags) is False:
        raise RuntimeError(f"not fully awake after wake_up({tags})")
    asleep.clear()
    return tags


async def pause_generation(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """``AsyncLLM.pause_generation`` without ``wait_for_inflight_requests``, called by a verl that still passes it."""
    if "wait_for_inflight_requests" not in signature(original).parameters:
        wait = kwargs.pop("wait_for_inflight_requests", None)
        if wait:
            kwargs.setdefault("mode", "wait")
    return await original(engine, *args, **kwargs)
