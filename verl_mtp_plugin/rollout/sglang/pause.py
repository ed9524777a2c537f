"""``SGLangHttpServer`` stopping and starting requests: what its methods do in the server's process, and answer."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ... import runtime
from ...errors import WeightSyncError
from .drain import CONTROL_LIMIT, answered, in_flight
from .memory import memory_of, require_complete

Method = Callable[..., Awaitable[Any]]

_IO: Final = "sglang.srt.managers.io_struct"


async def abort_all_requests(original: Method, server: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """End all requests and hold back new ones.

    Returns:
        aborted: requests that were in flight.

    Raises:
        WeightSyncError: some did not end in time. New requests are let in again, if they were before.
    """
    if is_second(server):
        return {"aborted": 0}
    manager, limit_s = server.tokenizer_manager, runtime.settings().sync_control_timeout_s
    was_paused = manager.is_pause
    aborted = 0 if was_paused else in_flight(manager)
    task = asyncio.ensure_future(original(server, *args, **kwargs))
    try:
        done, _ = await asyncio.wait({task}, timeout=limit_s)
    except asyncio.CancelledError:
        task.cancel()  # it holds the lock that resuming needs
        raise
    if done:
        task.result()
        memory_of(manager).door.taken_over(retracted=False)
        return {"aborted": aborted}
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    left = in_flight(manager)
    if not was_paused:
        await answered(_continue(manager), limit_s, "continue_generation")
    raise WeightSyncError(
        found=f"{left} of {aborted} requests still in flight {limit_s:g} s after they were aborted",
        expected="an engine that ends the requests it is told to end",
        advice="New requests are let in again. The log of SGLang's scheduler says what it does. If it needs longer, "
        f"raise mtp.plugin.{CONTROL_LIMIT}.",
    )


async def retract_all_requests(server: Any) -> dict[str, Any]:
    """Take all requests off the GPU to continue them after :func:`resume_generation`, and hold back new ones.

    Returns:
        aborted: 0. retracted: requests that were in flight.

    Raises:
        UnsupportedError: SGLang would lose them or something of them, or end itself. Nothing is paused.
    """
    from .refusals import refused
    from .retraction import can_retract, lost_with

    if is_second(server):
        return {"aborted": 0, "retracted": 0}
    manager = server.tokenizer_manager
    reason = can_retract(arguments=manager.server_args) or lost_with(
        state.obj for state in list(manager.rid_to_state.values()) if not state.finished
    )
    if reason is not None:
        raise refused(reason)
    retracted = 0 if manager.is_pause else in_flight(manager)
    pause = manager.pause_generation(message("PauseGenerationReqInput", mode="retract"))
    await answered(pause, runtime.settings().sync_control_timeout_s, "pause_generation")
    memory_of(manager).door.taken_over(retracted=True)
    return {"aborted": 0, "retracted": retracted}


async def resume_generation(original: Method, server: Any, *args: Any, **kwargs: Any) -> Any:
    """Let requests in again.

    Raises:
        WeightSyncError: memory is still released, or the pause before it has not ended.
    """
    if is_second(server):
        return None
    require_complete(server.tokenizer_manager)
    limit_s = runtime.settings().sync_control_timeout_s
    result = await answered(original(server, *args, **kwargs), limit_s, "continue_generation")
    memory_of(server.tokenizer_manager).door.opened()
    return result


async def stop(server: Any) -> None:
    """``abort_all_requests`` for verl's git before 0.7.1, whose replicas only print that they abort."""
    await server.tokenizer_manager.pause_generation(message("PauseGenerationReqInput", mode="abort"))


async def go_on(server: Any) -> None:
    """``resume_generation``, likewise."""
    await _continue(server.tokenizer_manager)


def is_second(server: Any) -> bool:
    """Whether a server is not the one of its replica that has the tokenizer manager."""
    return bool(server.node_rank != 0)


def message(name: str, **fields: Any) -> Any:
    """A message of SGLang's."""
    return getattr(importlib.import_module(_IO), name)(**fields)


async def _continue(manager: Any) -> None:
    await manager.continue_generation(message("ContinueGenerationReqInput"))
