"""Scenarios of :mod:`.test_sync` and :mod:`.test_failures`: weight syncs on Ray, good and bad."""

from __future__ import annotations

import asyncio
import copy
import os
import time
from types import SimpleNamespace
from typing import Any

from verl_mtp_plugin.testing import faults
from verl_mtp_plugin.testing.faults import Fault
from verl_mtp_plugin.view import View

from .cluster import failure, finish, generate, ids, make_manager, start, within

__all__ = ["finish", "start"]
Outcome = dict[str, Any]
#: ``mtp`` of a job that wants its requests to survive.
RETRACT = {"enable": True, "plugin": {"sync_requests": "retract"}}
#: For what must come; and how long a server is busy that becomes idle while it is drained.
SERVED_S, BUSY_S = 60.0, 0.5


async def sync(
    state: Any,
    step: int,
    requests: int = 0,
    faulty: dict[str, tuple[str, int | None]] | None = None,
    becomes_idle: bool = False,
) -> Outcome:
    """One sync, with ``requests`` in flight before it, and faults by step that ``becomes_idle`` ends in time."""
    faults.clear_faults()
    handle = state.replicas[0].server_handle
    running = [asyncio.create_task(generate(handle, 20_000)) for _ in range(requests)]
    await all_run(handle, requests)
    for name, (fault, times) in (faulty or {}).items():
        faults.set_fault(name, Fault(fault), times)
    clearing = asyncio.create_task(_clear_when_paused(handle)) if becomes_idle else None
    begin = time.monotonic()
    outcome: Outcome = {"answer": None}

    async def update() -> None:
        outcome["answer"] = await state.manager.update_weights(global_steps=step)

    outcome["error"] = await failure(update())
    outcome["seconds"] = time.monotonic() - begin
    if clearing is not None:
        await clearing
    faults.clear_faults()
    outcome["running"] = [await within(task, SERVED_S) for task in running]
    return outcome


async def all_run(handle: Any, requests: int) -> None:
    """Return when so many requests are running and have a token each.

    Raises:
        asyncio.TimeoutError: they have not after a minute.
    """

    def look(server: Any) -> list[int]:
        from verl_mtp_plugin.testing import sglang_engine

        return [len(request.tokens) for request in sglang_engine.schedulers[-1].running_batch.reqs]

    async def wait() -> None:
        while sum(count > 0 for count in await handle.__ray_call__.remote(look)) < requests:
            await asyncio.sleep(0.02)

    if requests:
        await asyncio.wait_for(wait(), SERVED_S)


async def _clear_when_paused(handle: Any) -> None:
    while not (await handle.mtp_status.remote())["paused"]:
        await asyncio.sleep(0.02)
    await asyncio.sleep(BUSY_S)
    faults.clear_faults()


async def retracted(state: Any, step: int, tokens: int) -> Outcome:
    """A sync with ``sync_requests=retract`` beside requests that began before it and end after it."""
    faults.clear_faults()
    replica = state.replicas[0]
    running = [asyncio.create_task(ids(replica.server_handle, tokens)) for _ in range(2)]
    await all_run(replica.server_handle, 2)
    known, replica.model_config = replica.model_config, View(replica.model_config, mtp=RETRACT)
    outcome: Outcome = {"answer": None}

    async def update() -> None:
        outcome["answer"] = await state.manager.update_weights(global_steps=step)

    try:
        outcome["error"] = await failure(update())
    finally:
        replica.model_config = known
    outcome["ended_meanwhile"] = [task.done() for task in running]
    outcome["tokens"] = [await within(task, SERVED_S) for task in running]
    return outcome


async def undisturbed(state: Any, tokens: int) -> Outcome:
    return {"tokens": await within(ids(state.replicas[0].server_handle, tokens), SERVED_S)}


async def served(state: Any, seconds: float = SERVED_S) -> Outcome:
    """What the server makes of a request now, and what it says of itself."""
    handle = state.replicas[0].server_handle
    outcome = {"request": await within(generate(handle), seconds)}
    return outcome | ({"status": await handle.mtp_status.remote()} if hasattr(handle, "mtp_status") else {})


async def status(state: Any) -> Any:
    return await state.replicas[0].server_handle.mtp_status.remote()


async def asked_for_mtp(state: Any, step: int, train: bool) -> Outcome:
    """A sync of a worker whose config drafts with MTP; the trainer's tensors are of no MTP layer."""

    def ask(worker: Any, asked: bool) -> None:
        from verl.workers.config.model import MtpConfig

        adapter = worker.server_adapter
        object.__setattr__(adapter.config, "mtp", MtpConfig(enable=asked, enable_train=train, enable_rollout=asked))
        # The scheduler of these tests has no drafter that could be asked about.
        drafter = SimpleNamespace(engine=adapter._engine, answers=False, layers=1)
        vars(adapter)["_verl_mtp_drafter"] = drafter

    (worker,) = state.replicas[0].workers
    await worker.__ray_call__.remote(ask, True)
    try:
        return await sync(state, step)
    finally:
        await worker.__ray_call__.remote(ask, False)


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
