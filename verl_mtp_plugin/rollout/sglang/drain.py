"""Waiting for SGLang: until its engine is idle, and for no answer longer than the limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from ...errors import WeightSyncError
from ...view import View

POLL_S: Final = 0.05
#: Where SGLang's tokenizer manager keeps what asks the schedulers of all data-parallel ranks (0.5.6 to 0.5.23).
_COMMUNICATOR: Final = "flush_cache_communicator"

#: Calls that nobody waits for any more and that have not ended; asyncio itself keeps none of its tasks alive.
_left: Final[set[asyncio.Future[Any]]] = set()


CONTROL_LIMIT: Final = "sync_control_timeout_s"
DRAIN_LIMIT: Final = "sync_drain_timeout_s"


async def answered(call: Awaitable[Any], limit_s: float | None, what: str, setting: str = CONTROL_LIMIT) -> Any:
    """The result of ``call`` if it comes within ``limit_s`` seconds.

    The call itself is never cancelled, neither by the limit nor with its caller: up to SGLang 0.5.20 a message whose
    sender was cancelled blocks all later messages of its kind.

    Args:
        call: what to wait for.
        limit_s: how long, in seconds; None: for ever.
        what: it is an answer to, for the message.
        setting: that the limit comes from, for the message.

    Raises:
        WeightSyncError: no answer in time. What was asked for may still happen.
    """
    task = asyncio.ensure_future(call)
    _left.add(task)
    task.add_done_callback(_forget)
    done, _ = await asyncio.wait({task}, timeout=limit_s)
    if not done:
        raise WeightSyncError(
            found=f"no answer from SGLang to {what} within {limit_s:g} s",
            expected="an engine that answers",
            advice=f"The log of its scheduler says what it does. If it needs longer, raise mtp.plugin.{setting}.",
        )
    return task.result()


def _forget(task: asyncio.Future[Any]) -> None:
    _left.discard(task)
    if not task.cancelled():
        task.exception()  # seen: asyncio does not complain of it when nobody waits any more


async def drain(
    manager: Any, limit_s: float, *, retracted: bool = False, given_up: Callable[[], bool] = lambda: False
) -> float:
    """Wait until SGLang has nothing in flight, and say how long that took, in seconds.

    Its door (``is_pause``) must be closed. ``flush_cache`` succeeds exactly where a release of memory does not fail its
    assertion: the two share a predicate in all releases. It is asked again and again, without a time of its own to
    wait: with one it leaves no retracted request out (0.5.21) and refuses a second caller.

    Args:
        manager: SGLang's ``TokenizerManager``.
        limit_s: in seconds.
        retracted: requests wait in a paused scheduler; their callers wait with them.
        given_up: asked between two polls; when it says so, waiting ends as at the limit.

    Raises:
        WeightSyncError: the engine is still busy after ``limit_s`` seconds.
    """
    manager.auto_create_handle_loop()  # without it nobody reads the answer (0.5.6)
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not await _is_idle(manager, limit_s, retracted):
        waited = loop.time() - start
        if waited >= limit_s or given_up():
            raise WeightSyncError(
                found=f"an engine still busy after {waited:.1f} s, with {in_flight(manager)} requests in flight",
                expected="an idle engine, since SGLang's scheduler ends itself when it releases memory while it runs",
                advice="Nothing was released. Stop requests first (abort_all_requests), or raise "
                f"mtp.plugin.{DRAIN_LIMIT}.",
            )
        await asyncio.sleep(POLL_S)
    return loop.time() - start


async def patience(manager: Any, limit_s: float, *, retracted: bool = False) -> float:
    """:func:`drain` for a job without MTP: the seconds that were waited; whether for long enough, SGLang will say."""
    start = asyncio.get_running_loop().time()
    try:
        return await drain(manager, limit_s, retracted=retracted)
    except WeightSyncError:
        return asyncio.get_running_loop().time() - start


async def _is_idle(manager: Any, limit_s: float, retracted: bool) -> bool:
    # A request that is past the door, and perhaps not sent yet, holds this lock until it has its answer.
    if not retracted and await manager.model_update_lock.is_locked():
        return False
    return bool((await answered(_flush(manager), limit_s, "flush_cache", DRAIN_LIMIT)).success)


def _flush(manager: Any) -> Awaitable[Any]:
    """SGLang's ``flush_cache``, which hears every data-parallel rank's scheduler and answers for the first of them.

    With attention in data parallel each rank has requests of its own, and a release asserts that it is idle. So the
    first answer that it is given is one that refuses, if there is one.
    """
    ask = getattr(manager, _COMMUNICATOR, None)
    if ask is None:
        return cast("Awaitable[Any]", manager.flush_cache())

    async def refusals_first(request: Any) -> list[Any]:
        return sorted(await ask(request), key=lambda answer: bool(answer.success))

    flush = type(manager).flush_cache
    return cast("Awaitable[Any]", flush(View(manager, **{_COMMUNICATOR: refusals_first})))


def in_flight(manager: Any) -> int:
    """Requests that SGLang's tokenizer manager knows and that have not ended."""
    return sum(not state.finished for state in list(manager.rid_to_state.values()))
