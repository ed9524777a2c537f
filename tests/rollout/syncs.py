"""Scenarios of :mod:`.test_sync` and :mod:`.test_failures`: weight syncs on Ray, good and bad."""

from __future__ import annotations

import asyncio
import copy
import os
import time
from typing import Any

from verl_mtp_plugin.testing import faults
from verl_mtp_plugin.testing.faults import Fault

from .cluster import failure, finish, generate, make_manager, start, within

__all__ = ["finish", "start"]
Outcome = dict[str, Any]
SERVED_S = 10.0


async def sync(
    state: Any,
    step: int,
    requests: int = 0,
    faulty: dict[str, tuple[str, int | None]] | None = None,
    busy_s: float = 0.0,
) -> Outcome:
    """One sync, with ``requests`` in flight before it, faults by step, and an engine that is busy for a while."""
    faults.clear_faults()
    handle = state.replicas[0].server_handle
    running = [asyncio.create_task(generate(handle, 20_000)) for _ in range(requests)]
    await asyncio.sleep(0.3 if requests else 0.0)
    for name, (fault, times) in (faulty or {}).items():
        faults.set_fault(name, Fault(fault), times)
    if busy_s:
        asyncio.get_running_loop().call_later(busy_s, faults.clear_faults)
    begin = time.monotonic()
    outcome: Outcome = {"answer": None}

    async def update() -> None:
        outcome["answer"] = await state.manager.update_weights(global_steps=step)

    outcome["error"] = await failure(update())
    outcome["seconds"] = time.monotonic() - begin
    faults.clear_faults()
    outcome["running"] = [await within(task, SERVED_S) for task in running]
    return outcome


async def served(state: Any, seconds: float = SERVED_S) -> Outcome:
    """What the server makes of a request now, and what it says of itself."""
    handle = state.replicas[0].server_handle
    outcome = {"request": await within(generate(handle), seconds)}
    return outcome | ({"status": await handle.mtp_status.remote()} if hasattr(handle, "mtp_status") else {})


async def status(state: Any) -> Any:
    return await state.replicas[0].server_handle.mtp_status.remote()


async def adopt(state: Any) -> None:
    """Take the same actors for a replica that no sync has given up."""
    state.replicas[0] = copy.copy(state.replicas[0])
    state.manager = make_manager(state)


async def arrived(state: Any) -> Outcome:
    """Where the patches are: in this process, the server actor's and the checkpoint worker's."""

    def look(self: Any) -> tuple[int, dict[str, str]]:
        import verl_mtp_plugin

        return os.getpid(), {record.id: str(record.decision) for record in verl_mtp_plugin.report().patches}

    replica = state.replicas[0]
    actors = (replica.server_handle, replica.workers[0])
    return {"driver": look(None), **dict(zip(("server", "worker"), await asyncio.gather(*_ask(actors, look))))}


def _ask(actors: Any, question: Any) -> list[Any]:
    return [actor.__ray_call__.remote(question) for actor in actors]
