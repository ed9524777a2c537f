"""Every order in which verl controls its servers (:mod:`..orders.orders`), on verl's vLLM server."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

from ..orders.orders import ORDERS, OTHERS
from .cases import LONG, ask, case, memory, outcome
from .cases_wrong import CASES
from .server import Servers

__all__ = ["CASES"]  # all of them


class Played:
    """One server while an order is played."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.asked = 0
        self.served: list[str] = []

    async def call(self, step: str) -> str:
        """What came of it; "" if all is well."""
        core = self.server.engine.core
        if step == "generate":
            return await self.generate()
        if step == "abort_all_requests" and not core.asleep and not core.paused and self.server.engine.open.is_set():
            self.asked += 1
            running = asyncio.create_task(ask(self.server, f"running {self.asked}", LONG))
            for _ in range(50):
                await asyncio.sleep(0)
            said = await outcome(self.server.abort_all_requests)
            ended = await _soon(running)
            if isinstance(said, str) or (isinstance(said, dict) and said.get("error")):
                return str(said)
            return "" if ended is not None and ended.get("reason") == "aborted" else str(ended)
        if step == "write":
            core.weights = {name: value + 1 for name, value in core.weights.items()}
            return _error(await outcome(self.server.clear_kv_cache))
        if step.startswith("resume "):
            return _error(await outcome(self.server.engine.wake_up, step.split()[1:]))
        return _error(await outcome(getattr(self.server, step)))

    async def generate(self) -> str:
        self.asked += 1
        task = asyncio.create_task(ask(self.server, f"request {self.asked}"))
        found = await _soon(task)
        if found is None:
            return "waits"
        return "" if found.get("reason") == "completed" else str(found.get("error", found))


async def _soon(task: asyncio.Task[dict[str, Any]]) -> dict[str, Any] | None:
    """What comes of a request within some turns of the event loop; else it is cancelled."""
    for _ in range(200):
        await asyncio.sleep(0)
    if task.done():
        return task.result()
    task.cancel()
    return None


def _error(said: Any) -> str:
    return said if isinstance(said, str) else ""


async def _play(servers: Servers, steps: list[tuple[str, str]], modes: dict[str, str], mtp: bool) -> Any:
    played = {name: Played(servers.make(mode, mtp=mtp)) for name, mode in modes.items()}
    wrong = []
    for number, (name, step) in enumerate(steps):
        said = await played[name].call(step)
        if said:
            wrong.append([number, name, step, said])
    end = {}
    for name, one in played.items():
        found = memory(one.server)
        end[name] = {"asleep": found["asleep"], "dead": found["dead"]}
        if not found["asleep"]:
            await one.server.resume_generation()
            end[name]["request"] = await one.generate()
    return {"wrong": wrong, "end": end}


@case
async def orders(servers: Servers) -> Any:
    release = version("verl")
    known = {name: order for name, order in ORDERS.items() if release in order.releases}
    return {
        name: {how: await _play(servers, order.steps(release), order.servers, how == "mtp") for how in ("mtp", "plain")}
        for name, order in known.items()
    }


@case
async def other_orders(servers: Servers) -> Any:
    return {
        name: {
            how: await _play(servers, [("server", call) for call in steps.calls], {"server": steps.mode}, how == "mtp")
            for how in ("mtp", "plain")
        }
        for name, steps in OTHERS.items()
        if version("verl") in steps.releases
    }


@case
async def cache_stays(servers: Servers) -> Any:
    """``free_cache_engine=False``, and requests that are past every door when the server is paused."""
    server = servers.make(free_cache_engine=False)
    tasks = [asyncio.create_task(ask(server, f"early {i}", LONG)) for i in range(3)]
    await asyncio.sleep(0)
    await server.abort_all_requests()
    if hasattr(server, "mtp_drain"):
        await server.mtp_drain()
    server.engine.core.weights = {"target": -2, "drafter": -2}  # half-written
    for _ in range(50):
        await asyncio.sleep(0)
    left = len(server.engine.output_processor.request_states)
    server.engine.core.weights = {"target": 2, "drafter": 2}
    await server.resume_generation()
    found = [await asyncio.wait_for(task, 30) for task in tasks]
    return {"left": left, "made_by": sorted({w for f in found for w in f.get("made_by", [])})}


@case
async def held(servers: Servers) -> Any:
    """Weights that may be half-written."""
    server = servers.make()
    if not hasattr(server, "mtp_hold"):
        return None
    await server.abort_all_requests()
    await server.mtp_hold("its weights may be half-written")
    refused = await outcome(server.resume_generation)
    await server.mtp_hold("")
    await server.resume_generation()
    return {"refused": refused, "after": await ask(server, "after")}
