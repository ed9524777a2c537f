"""``SGLangHttpServer`` stopping and starting requests: what its methods do in the server's process, and answer."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ... import runtime
from ...errors import WeightSyncError
from .. import acceptance
from .drain import CONTROL_LIMIT, answered, in_flight
from .memory import Memory, memory_of, open_for_verl

logger = logging.getLogger(__name__)

Method = Callable[..., Awaitable[Any]]

_IO: Final = "sglang.srt.managers.io_struct"


async def abort_all_requests(original: Method, server: Any, *args: Any, **kwargs: Any) -> Any:
    """End all requests and hold back new ones.

    Returns:
        aborted: requests that were in flight. Without MTP what verl returns.

    Raises:
        WeightSyncError: some did not end in time. New requests are let in again, if they were before.
    """
    if is_second(server):
        return {"aborted": 0}
    if not memory_for(server).mtp:
        result = await original(server, *args, **kwargs)
        memory_for(server).door.taken_over(retracted=False)
        return result
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
        await answered(open_for_verl(manager), limit_s, "continue_generation")
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
    """Let requests in again: of a server whose memory is away as soon as it is back.

    verl's fully asynchronous trainer resumes servers that it has just put to sleep.

    Raises:
        WeightSyncError: its weights may be half-written, or the pause before it has not ended.
    """
    if is_second(server):
        return None
    memory = memory_for(server)
    if not memory.mtp:
        result = await original(server, *args, **kwargs)
        memory.door.opened()
        return result
    if memory.held:
        raise WeightSyncError(
            found=f"a server that is asked to generate, but {memory.held}",
            expected="complete weights before generation is resumed",
            advice="Take it out with the manager's remove_replicas(), or start the job from its last checkpoint; "
            "generation stays paused.",
        )
    if memory.released:
        memory.door.wanted_open = True
        logger.info("generation goes on when %s is resumed", ", ".join(sorted(memory.released)))
        return None
    limit_s = runtime.settings().sync_control_timeout_s
    result = await answered(original(server, *args, **kwargs), limit_s, "continue_generation")
    memory.door.opened()
    return result


async def stop(server: Any) -> None:
    """``abort_all_requests`` for verl's git before 0.7.1, whose replicas only print that they abort."""
    await server.tokenizer_manager.pause_generation(message("PauseGenerationReqInput", mode="abort"))


async def go_on(server: Any) -> None:
    """``resume_generation``, likewise."""
    await open_for_verl(server.tokenizer_manager)


def is_second(server: Any) -> bool:
    """Whether a server is not the one of its replica that has the tokenizer manager."""
    return bool(server.node_rank != 0)


def memory_for(server: Any) -> Memory:
    """The memory of a server's engine, which from then on knows whether the server's job uses MTP.

    Only this package retracts: whoever has asked for that has asked for the rest.
    """
    memory = memory_of(server.tokenizer_manager)
    memory.mtp = memory.door.retracted or acceptance.uses_mtp(server.config, server.model_config)
    return memory


def message(name: str, **fields: Any) -> Any:
    """A message of SGLang's."""
    return getattr(importlib.import_module(_IO), name)(**fields)
