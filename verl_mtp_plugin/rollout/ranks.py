"""The ranks of a hybrid worker wait for each other before the first of them takes its KV cache back.

Where trainer and rollout share a GPU, every rank sends its weights, drops its buffers, and the leader of each engine
then resumes the cache of all the engine's ranks: also of those that still hold buffers, which run out of memory.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from ..patching import Patch, Target, around

KV_CACHE: Final = "kv_cache"
#: The workers that resume the cache themselves, all ranks in the same call.
WORKERS: Final = "verl.workers.engine_workers"
ADAPTERS: Final = (
    ("sglang", "verl.workers.rollout.sglang_rollout.sglang_rollout", "ServerAdapter"),
    ("vllm", "verl.workers.rollout.vllm_rollout.vllm_rollout", "ServerAdapter"),
)


async def resume(
    original: Callable[..., Awaitable[Any]], self: Any, tags: Sequence[str], *args: Any, **kwargs: Any
) -> Any:
    """``ServerAdapter.resume``, which all ranks call; for the KV cache once all of them have come here."""
    if KV_CACHE in tags and not _upstream_waits():
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            await asyncio.to_thread(distributed.barrier)  # the event loop of the worker goes on
    return await original(self, tags, *args, **kwargs)


def _upstream_waits() -> bool:
    """Whether verl's worker has a barrier of its own in front of this call (0.9.1); not where there is no worker."""
    worker = getattr(sys.modules.get(WORKERS), "ActorRolloutRefWorker", None)
    update: Any = getattr(worker, "update_weights", None)
    return "barrier" in getattr(getattr(inspect.unwrap(update), "__code__", None), "co_names", ())


PATCHES: Final = tuple(
    Patch(
        id=f"rollout.{backend}.ranks",
        target=Target(module, f"{owner}.resume"),
        reason="the KV cache is resumed while other ranks still hold the buffers of the weight transfer, and the "
        "engine runs out of memory",
        upstream="verl 0.9.1 has a barrier there; delete when that is the oldest release",
        build=around(resume),
        absent_ok=True,
    )
    for backend, module, owner in ADAPTERS
)
