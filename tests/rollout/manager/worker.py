"""Weight syncs of one verl release, first as released and then with the plugin; prints what was seen as a line of JSON.

python -m tests.rollout.manager.worker [case ...]
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import verl.checkpoint_engine.base as base
from verl.utils.tracking import Tracking
from verl.workers.rollout.replica import RolloutMode

import verl_mtp_plugin
from tests.stack.conftest import MARK
from verl_mtp_plugin.patching import PatchEngine
from verl_mtp_plugin.rollout import manager, states, sync_metrics

from . import fake_ray
from .actors import CacheServer, RetractingServer, Server
from .job import Job

#: What is also run as verl was released; in others it never comes to an end.
PLAIN = ("good", "awaited", "breaks_once", "refuses_to_pause")

CASES: dict[str, Callable[[], Any]] = {}


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES[function.__name__] = function
    return function


def seen(job: Job, returned: Any) -> dict[str, Any]:
    """Everything about a job after a sync."""
    return {
        "returned": returned,
        "generate": job.generate(),
        "kv_mapped": [server.kv_mapped for replica in job.replicas for server in replica.actors],
        "log": job.replicas[0].log,
        "trainer": job.trainer.log,
        "buffers": [engine.buffers for replica in job.replicas for engine in replica.engines] + [job.trainer.buffers],
        "states": [str(state) for state in states(job.manager).values()],
    }


@case
def good() -> Any:
    job = Job()
    return seen(job, job.sync())


@case
def awaited() -> Any:
    job = Job()

    async def main() -> Any:
        return await job.manager.update_weights(**job.step)

    return seen(job, asyncio.run(main()))


@case
def again() -> Any:
    job = Job()
    return [bool(job.sync()), seen(job, job.sync())]


@case
def breaks_once() -> Any:
    job = Job()
    job.replicas[1].engines[0].breaks = 1
    return seen(job, job.sync())


@case
def breaks_always() -> Any:
    job = Job()
    job.replicas[1].engines[0].breaks = 9
    return seen(job, job.sync())


@case
def retries_from_the_job_config() -> Any:
    job = Job(plugin={"sync_retries": 3})
    job.replicas[1].engines[0].breaks = 3
    return seen(job, job.sync())


@case
def differences() -> Any:
    job = Job(backend="test_differences")
    job.replicas[1].engines[0].breaks = 1
    return seen(job, job.sync())


@case
def refuses_to_pause() -> Any:
    job = Job()
    job.replicas[1].actors[0].broken = {"abort_all_requests"}
    return seen(job, job.sync())


@case
def cannot_map_its_cache() -> Any:
    job = Job()
    job.replicas[1].actors[0].broken = {"resume_kv_cache", "wake_up"}
    return seen(job, job.sync())


@case
def stuck() -> Any:
    """A transfer that does not come back: the event loop of the caller goes on, and the limit ends it."""
    job = Job(plugin={"sync_transfer_timeout_s": 0.5})
    job.replicas[0].engines[0].stuck = asyncio.Event()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.05)
            ticks += 1

    async def main() -> Any:
        ticking = asyncio.ensure_future(tick())
        try:
            return await job.manager.update_weights(**job.step)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            ticking.cancel()

    return {**seen(job, asyncio.run(main())), "ticks": ticks}


@case
def breaks_while_another_goes_on() -> Any:
    """verl raises the first worker's error at once. The next attempt waits for those that are still receiving."""
    job = Job()
    job.replicas[1].engines[0].breaks = 1
    slow = job.replicas[0].engines[0]
    slow.stuck = going = asyncio.Event()
    threading.Timer(0.3, lambda: fake_ray._actors.call_soon_threadsafe(going.set)).start()
    return {**seen(job, job.sync()), "overlapping": slow.overlapping}


@case
def breaks_while_another_never_ends() -> Any:
    job = Job(plugin={"sync_control_timeout_s": 0.3})
    job.replicas[1].engines[0].breaks = 1
    job.replicas[0].engines[0].stuck = asyncio.Event()
    return seen(job, job.sync())


@case
def one_server_refuses_while_another_is_slow() -> Any:
    """verl's replica raises the first server's error at once; it is resumed when the slow one has been paused."""
    job = Job()
    job.replicas[1].actors[0].broken = {"abort_all_requests"}
    job.replicas[1].actors[1].slow_s = 0.3
    return {**seen(job, job.sync()), "log": job.replicas[1].log}


@case
def cancelled() -> Any:
    """While the transfer runs: the sync ends first."""
    job = Job()
    job.replicas[0].engines[0].stuck = going = asyncio.Event()

    async def main() -> Any:
        sync = asyncio.ensure_future(_update(job))
        while not job.trainer.log or not job.trainer.log[-1].startswith("send"):
            await asyncio.sleep(0.01)
        sync.cancel()
        await asyncio.sleep(0.05)
        fake_ray._actors.call_soon_threadsafe(going.set)
        try:
            return await sync
        except asyncio.CancelledError:
            return "CancelledError"

    return seen(job, asyncio.run(main()))


async def _update(job: Job) -> Any:
    return await job.manager.update_weights(**job.step)


@case
def cache_stays() -> Any:
    job = Job(free_cache_engine=False)
    return seen(job, job.sync())


@case
def servers_with_cache_controls() -> Any:
    """verl 0.7.1's replicas have none; servers to which the plugin has given them are called directly."""
    job = Job(server_class=CacheServer)
    return seen(job, job.sync())


@case
def retracts() -> Any:
    job = Job(server_class=RetractingServer, plugin={"sync_requests": "retract"})
    return seen(job, job.sync())


@case
def cannot_retract() -> Any:
    job = Job(plugin={"sync_requests": "retract"})
    return seen(job, job.sync())


@case
def naive() -> Any:
    job = Job(backend="naive")
    return seen(job, job.sync())


@case
def hybrid() -> Any:
    job = Job(mode=RolloutMode.HYBRID)
    job.replicas[1].engines[0].breaks = 1
    return seen(job, job.sync())


@case
def off_in_the_job_config() -> Any:
    job = Job(plugin="off")
    job.replicas[1].engines[0].breaks = 1
    return seen(job, job.sync())


@case
def without_mtp() -> Any:
    job = Job(mtp=False)
    job.replicas[1].engines[0].breaks = 1
    return seen(job, job.sync())


@case
def without_mtp_good() -> Any:
    job = Job(mtp=False, plugin={"sync_requests": "retract"})
    return seen(job, job.sync())


@case
def cannot_be_paused() -> Any:
    """Servers of a backend that has no such method, which verl's git before 0.7.1 does not call either."""

    class Deaf(Server):
        abort_all_requests = property()

    job = Job(server_class=Deaf)
    return {"trainer": job.trainer.log, "returned": job.sync()}


@case
def manager_of_the_users() -> Any:
    class Manager(base.CheckpointEngineManager):
        def update_weights(self, global_steps: int | None = None) -> str:
            return f"mine {global_steps}"

    job = Job(manager_class=Manager)
    return seen(job, job.sync())


@case
def metrics() -> Any:
    """Two lines in the tracker after a sync whose metrics nobody took, then one after a sync whose metrics were."""
    lines: list[Any] = []

    class Backend:
        def log(self, data: dict[str, Any], step: int) -> None:
            lines.append([step, sorted(data)])

    tracking = Tracking.__new__(Tracking)
    tracking.logger = {"lines": Backend()}
    data = {"actor/loss": 0.5}
    job = Job()
    job.sync()
    tracking.log(data=data, step=1)
    tracking.log(data, 2)
    taken = job.sync()
    tracking.log(data={**data, **(taken or {}), "weight_sync/retries": 9.0}, step=3)
    tracking.log(data, 4)
    return {"lines": lines, "data": data}


def run(names: list[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        print(name, file=sys.stderr)  # which case it was, should one hang
        found[name] = CASES[name]()
    return found


def main() -> None:
    verl_mtp_plugin.deactivate()  # importing it beside verl has activated all of it
    chosen = sys.argv[1:] or list(CASES)
    found: dict[str, Any] = {"plain": run([name for name in PLAIN if name in chosen])}
    engine = PatchEngine()
    engine.arm([*manager.PATCHES, *sync_metrics.PATCHES])
    found["decisions"] = {record.id: [str(record.decision), record.detail] for record in engine.records()}
    found["plugin"] = run(chosen)
    engine.revert_all()
    found["reverted"] = run(["breaks_once"])["breaks_once"]
    print(MARK + json.dumps(found), flush=True)
    os._exit(0)  # some transfers are stuck on purpose


if __name__ == "__main__":
    main()
