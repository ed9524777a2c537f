"""Plays orders on verl's real SGLang servers in this process: with the plugin (with MTP and without), and bare."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import verl_mtp_plugin
from verl_mtp_plugin.patching import PatchEngine
from verl_mtp_plugin.rollout.sglang import verl_compat
from verl_mtp_plugin.testing import faults, sglang_engine
from verl_mtp_plugin.testing.faults import Fault

from .. import servers
from ..scheduler import engine
from .orders import ORDERS, OTHERS

Outcome = dict[str, Any]
#: For what must come; what is held back has not come after :data:`HELD_S`.
LIMIT_S, HELD_S = 20.0, 0.3
#: How long a step is in flight.
BUSY_S = 0.4
#: A request that is aborted lasts longer than any order.
LONG = 30_000


async def start() -> SimpleNamespace:
    servers.prepare()
    servers.without_ray()
    sglang_engine.on_death = lambda: None
    return SimpleNamespace(model={mtp: servers.model_config(mtp=mtp) for mtp in (True, False)}, version=0)


class Played:
    """One server while an order is played."""

    def __init__(self, server: Any, mode: str) -> None:
        self.with_requests = False  # that are in flight at the first abort, which takes SGLang a second
        self.server, self.mode, self.scheduler = server, mode, sglang_engine.schedulers[-1]
        self.manager = server.tokenizer_manager
        self.waiting: list[asyncio.Task[Any]] = []

    @property
    def unmapped(self) -> list[str]:
        return sorted(self.scheduler.memory_saver_adapter.unmapped)

    async def call(self, step: str, version: int) -> str:
        """What came of it, in a word; "" if all is well."""
        if step == "generate":
            return await self.generate()
        serves = not (self.manager.is_pause or self.unmapped)
        if step == "abort_all_requests" and self.with_requests and serves:
            self.with_requests = False
            running = asyncio.create_task(servers.generate(self.server, LONG))
            while not any(request.tokens for request in self.scheduler.running_batch.reqs):
                await asyncio.sleep(0.01)
            return await self.limited(self.server.abort_all_requests()) or await self.limited(running)
        if step == "write":
            return await self.limited(self.write(version))
        if step.startswith("resume "):
            message = engine.io("ResumeMemoryOccupationReqInput")(tags=step.split()[1:])
            return await self.limited(self.manager.resume_memory_occupation(message, None))
        return await self.limited(getattr(self.server, step)())

    async def write(self, version: int) -> None:
        """Weights in two messages, as verl's worker sends them."""
        import torch

        begin, end = engine.io("BeginWeightUpdateReqInput"), engine.io("EndWeightUpdateReqInput")
        if begin is not None:
            await self.manager.begin_weight_update(begin(), None)
        for name in ("first", "second"):
            message = engine.message([(name, torch.full((2,), float(version)))])
            done = await self.manager.update_weights_from_tensor(message, None)
            assert done[0], done
        if end is not None:
            await self.manager.end_weight_update(end(), None)
        assert (await self.manager.flush_cache()).success

    async def generate(self) -> str:
        task = asyncio.create_task(servers.generate(self.server))
        await asyncio.wait({task}, timeout=HELD_S)
        if not task.done() and not self.dead and (self.manager.is_pause or self.unmapped):
            self.waiting.append(task)
            return "waits"
        return await self.limited(task)

    async def limited(self, call: Any) -> str:
        task = asyncio.ensure_future(call)
        loop = asyncio.get_running_loop()
        end = loop.time() + LIMIT_S
        while not task.done() and not self.dead and loop.time() < end:
            await asyncio.wait({task}, timeout=0.05)
        if not task.done():
            return self.dead or "no answer"
        error = task.exception()
        return "" if error is None else f"{type(error).__name__}: {error}"

    @property
    def dead(self) -> str:
        return f"scheduler ended: {self.scheduler.death}" if self.scheduler.death else ""

    async def woken(self, version: int) -> str:
        """Memory back, as the next thing that its job does."""
        steps = ("resume weights", "write", "resume kv_cache") if self.mode == "HYBRID" else ("wake_up",)
        results = [await self.call(step, version) for step in steps]
        return "; ".join(filter(None, results))


async def play(
    state: Any,
    steps: list[tuple[str, str]],
    modes: dict[str, str],
    how: str,
    free_cache_engine: bool = True,
    clear: Any = None,
    with_requests: bool = False,
) -> Outcome:
    """``how``: "mtp", "without mtp" or "bare" (no plugin)."""
    faults.clear_faults()
    for scheduler in sglang_engine.schedulers:
        scheduler.stopped = True
    engine = PatchEngine()
    if how == "bare":  # but for what a server of the two needs to start
        verl_mtp_plugin.deactivate()
        engine.arm(verl_compat.PATCHES)
    try:
        played = await _launched(state, modes, how == "mtp", free_cache_engine)
        for one in played.values():
            one.with_requests = with_requests
        return await _play(state, steps, played, clear)
    finally:
        engine.revert_all()
        verl_mtp_plugin.activate()


async def _launched(state: Any, modes: dict[str, str], mtp: bool, free_cache_engine: bool) -> dict[str, Played]:
    options = {"free_cache_engine": free_cache_engine, "mtp": servers.mtp_config(mtp)}
    return {name: Played(await servers.launch(state.model[mtp], mode, **options), mode) for name, mode in modes.items()}


async def _play(state: Any, steps: list[tuple[str, str]], played: dict[str, Played], clear: Any) -> Outcome:
    wrong = []
    for number, (name, step) in enumerate(steps):
        if step == "busy write":
            faults.set_fault("drain", Fault.BUSY)
            clearing = asyncio.ensure_future(clear())
            await asyncio.sleep(0.05)  # the scheduler has seen it
        state.version += step.endswith("write")
        said = await played[name].call(step.removeprefix("busy "), state.version)
        if step == "busy write":
            await clearing
        if said:
            wrong.append([number, name, step, said.replace("\n", " ")])
        if played[name].dead:
            break
    return {"wrong": wrong, "end": {name: await _end(one, state.version) for name, one in played.items()}}


async def play_order(state: Any, name: str, release: str, how: str, free_cache_engine: bool = True) -> Outcome:
    order = ORDERS[name]
    steps = order.steps(release, free_cache_engine)
    return await play(state, steps, order.servers, how, free_cache_engine, with_requests="asynchronous" in name)


async def play_other(state: Any, name: str, how: str) -> Outcome:
    steps = OTHERS[name]
    return await play(state, [("server", call) for call in steps.calls], {"server": steps.mode}, how)


async def busy_write(state: Any, mode: str, how: str, paused: bool) -> Outcome:
    """With ``free_cache_engine=False`` weights come while the last step of a request is in flight."""

    async def clear() -> None:
        await asyncio.sleep(BUSY_S)
        faults.clear_faults()

    steps = [("server", "abort_all_requests")] if paused else []
    return await play(state, [*steps, ("server", "busy write")], {"server": mode}, how, False, clear)


async def held(state: Any) -> Outcome:
    """Weights that may be half-written: whoever resumes generation is refused, until a sync has succeeded."""
    server = (await _launched(state, {"server": "STANDALONE"}, True, True))["server"]
    steps = ("abort_all_requests", "release_kv_cache")
    said = [await server.call(step, 0) for step in steps]
    await server.server.mtp_hold("its weights may be half-written")
    said += [await server.call(step, 0) for step in ("resume_generation", "resume_kv_cache", "resume_generation")]
    paused = server.manager.is_pause
    await server.server.mtp_hold("")
    said += [await server.call(step, 0) for step in ("resume_generation", "generate")]
    return {"said": said, "paused": paused}


async def _end(one: Played, version: int) -> Outcome:
    """What a server is like in the end: asleep or not, and what becomes of a request."""
    outcome: Outcome = {"unmapped": one.unmapped, "death": one.scheduler.death}
    if one.dead:
        return outcome
    if one.unmapped:
        outcome["woken"] = await one.woken(version)
        outcome["left"] = one.unmapped
    if one.manager.is_pause and not one.waiting:
        outcome["paused"] = True
        await one.server.resume_generation()
    outcome["request"] = await one.generate()
    outcome["waited"] = [await one.limited(task) for task in one.waiting]
    return outcome
