"""How much memory a release has freed, seen without making a CUDA context in the server's process."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, NamedTuple

logger = logging.getLogger(__name__)

KV_CACHE: Final = "kv_cache"
_ANSWER_S: Final = 5.0
_GIB: Final = 1 << 30


class Reading(NamedTuple):
    """Memory before a release, in bytes."""

    used: int | None  # of this server's GPUs, by their driver; None where there is none
    pool: int | None  # of the KV cache, by SGLang


async def reading(manager: Any) -> Reading:
    """What there is to compare with after the release."""
    used = _used()
    return Reading(used, None if used is not None else await _pool(manager))


def since(before: Reading, tags: list[str]) -> int | None:
    """Bytes freed since ``before`` by a release of ``tags``; None if nobody can say.

    Without a driver to ask it is the size of the KV pool, which says nothing of other tags.
    """
    used = _used()
    if before.used is not None and used is not None:
        return before.used - used
    return before.pool if tags == [KV_CACHE] else None


def _used() -> int | None:
    """Bytes in use on all visible GPUs. The driver's library is asked, as nvidia-smi does, not the CUDA runtime."""
    try:
        import torch

        devices = range(torch.cuda.device_count())
        return sum(int(torch.cuda.device_memory_used(index)) for index in devices) if devices else None
    except Exception as error:  # no management library, or one that refuses: a metric is missing, no sync fails
        logger.debug("memory in use is not known: %s", error)
        return None


async def _pool(manager: Any) -> int | None:
    """Bytes of the KV pools of all ranks, as SGLang reports them for one rank of each data-parallel group."""
    task = asyncio.ensure_future(manager.get_internal_state())  # not cancelled: see drain.answered
    done, _ = await asyncio.wait({task}, timeout=_ANSWER_S)
    try:
        states = task.result() if done else []
        gigabytes = sum(float(state["memory_usage"]["kvcache"]) for state in states)
    except Exception as error:  # another form in another release: a metric is missing, no sync fails
        logger.debug("the size of the KV pool is not known: %s", error)
        return None
    arguments = getattr(manager, "server_args", None)
    ranks = getattr(arguments, "tp_size", 1) * getattr(arguments, "pp_size", 1) // max(1, len(states))
    return round(gigabytes * ranks * _GIB) if states else None
