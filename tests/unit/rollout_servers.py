"""Rollout servers as they are in truth, for tests of the weight sync, and every way in which a call can go wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import Any

from verl_mtp_plugin.rollout.replica import Paused, Released
from verl_mtp_plugin.rollout.report import SyncOptions

HALF = -1  # weights of no step: a part of the old and a part of the new ones
KV_BYTES = 3 * 2**30
CONTROL_S, DRAIN_S, TRANSFER_S = 60.0, 40.0, 600.0
#: Seconds that a late call takes: the caller has stopped waiting, and its next call is waiting its turn.
LATE_S = {
    "pause": 2 * CONTROL_S + 30,
    "drain": DRAIN_S + 30,
    "release_kv": DRAIN_S + CONTROL_S + 30,
    "resume_kv": DRAIN_S + 2 * CONTROL_S + 30,
}


class Fault(Enum):
    """What becomes of a call. A server that does not answer may or may not have done what it was asked for."""

    RAISES = "raises, nothing done"
    RAISES_AFTER = "done, then raises"
    SILENT = "no answer, nothing done"
    SILENT_AFTER = "no answer, done"
    LATE = "done long after the caller has given up"
    DIES = "the process ends"


class ViolationError(AssertionError):
    """Something happened that must never happen."""


class Cluster:
    """All servers of a manager, and what is watched while they are synchronized."""

    def __init__(self, size: int, *, step: int = 0) -> None:
        self.servers = [Server(self, rank, step) for rank in range(size)]
        self.buffers = False  # workers hold transfer buffers
        self.calls = 0
        self.cancel_at: Counter[int] = Counter()  # call number -> how often the caller is cancelled there
        self.caller: asyncio.Task[Any] | None = None
        self.handlers: list[asyncio.Task[None]] = []
        self.violations: list[str] = []  # of calls whose errors the sync takes for the server's

    def called(self) -> None:
        """Count a call, of a server or of the transfer, and cancel the sync if that was to happen now."""
        if self.caller is not None:
            for _ in range(self.cancel_at[self.calls]):
                self.caller.cancel()
        self.calls += 1

    def check(self) -> None:
        """The invariants of every instant."""
        serving = [server for server in self.servers if server.alive and not server.paused]
        for server in serving:
            if not server.kv_mapped:
                raise ViolationError(f"{server.name} serves without its KV cache")
            if server.weights == HALF:
                raise ViolationError(f"{server.name} serves half-written weights")
        if len({server.weights for server in serving}) > 1:
            raise ViolationError(f"mixed versions: {[server.weights for server in serving]}")

    def forget_faults(self) -> None:
        """From now on everything goes well."""
        self.cancel_at.clear()
        for server in self.servers:
            server.faults.clear()

    async def settled(self) -> None:
        """Wait until the servers have done all that they were asked for; what was seen that must not be is raised."""
        handlers, self.handlers = self.handlers, []
        for handler in handlers:
            await handler
        if self.violations:
            raise ViolationError(", ".join(self.violations))


class Server:
    """One replica. Calls are done one after another, and go on when the caller has stopped waiting."""

    stays_paused = True

    def __init__(self, cluster: Cluster, rank: int, step: int) -> None:
        self._cluster = cluster
        self.name = f"replica {rank}"
        self.alive, self.paused, self.kv_mapped, self.weights = True, False, True, step
        self.running = 0  # requests in flight
        self.faults: dict[str, list[Fault | None]] = {}
        self.calls: list[str] = []
        self.held = ""
        self._turn: asyncio.Future[None] | None = None

    def move_to(self, cluster: Cluster) -> None:
        """Belong to another cluster from now on."""
        self._cluster = cluster

    @property
    def key(self) -> object:
        return self

    async def pause(self) -> Paused:
        aborted, self.running = self.running, 0
        await self._call("pause", self._pause)
        return Paused(aborted)

    def _pause(self) -> None:
        self.paused = True

    async def drain(self) -> None:
        await self._call("drain", lambda: None)

    async def release_kv(self) -> Released:
        await self._call("release_kv", self._release)
        return Released(KV_BYTES)

    def _release(self) -> None:
        if not self.paused:
            raise ViolationError(f"{self.name} releases its KV cache while it serves")
        self.kv_mapped = False

    async def resume_kv(self) -> None:
        await self._call("resume_kv", self._resume_kv)

    def _resume_kv(self) -> None:
        if self._cluster.buffers:
            raise ViolationError(f"{self.name} maps its KV cache while workers hold transfer buffers")
        self.kv_mapped = True

    async def resume_generation(self) -> None:
        await self._call("resume_generation", self._resume)

    def _resume(self) -> None:
        self.paused = False

    async def hold(self, reason: str) -> None:
        if self.alive:
            self.held = reason

    async def version(self) -> int | None:
        await self._call("version", lambda: None)
        return self.weights

    async def _call(self, name: str, effect: Callable[[], None]) -> None:
        self._cluster.called()
        self.calls.append(name)
        faults = self.faults.get(name)
        fault = faults.pop(0) if faults else None
        before, turn = self._turn, asyncio.get_running_loop().create_future()
        self._turn = turn
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        handler = asyncio.ensure_future(self._handle(name, effect, fault, answer, before, turn))
        self._cluster.handlers.append(handler)
        await answer

    async def _handle(
        self,
        name: str,
        effect: Callable[[], None],
        fault: Fault | None,
        answer: asyncio.Future[None],
        before: asyncio.Future[None] | None,
        turn: asyncio.Future[None],
    ) -> None:
        try:
            if before is not None and before.get_loop() is asyncio.get_running_loop():
                await asyncio.shield(before)
            await asyncio.sleep(LATE_S.get(name, CONTROL_S + 30) if fault is Fault.LATE else 0.01)
            if fault is Fault.DIES:
                self.alive = False
            if not self.alive or fault is Fault.RAISES:
                _reply(answer, RuntimeError(f"{self.name} is dead" if not self.alive else "refused"))
                return
            if fault is Fault.SILENT:
                return
            effect()
            self._cluster.check()
            if fault is not Fault.SILENT_AFTER:
                _reply(answer, RuntimeError("failed afterwards") if fault is Fault.RAISES_AFTER else None)
        finally:
            turn.set_result(None)


def _reply(answer: asyncio.Future[None], error: Exception | None) -> None:
    if answer.done():
        return  # nobody waits for it
    if error is None:
        answer.set_result(None)
    else:
        answer.set_exception(error)


def options(**changed: Any) -> SyncOptions:
    """Limits that fit the servers' delays."""
    limits = {"control_timeout_s": CONTROL_S, "drain_timeout_s": DRAIN_S, "transfer_timeout_s": TRANSFER_S}
    return SyncOptions(**{**limits, **changed})
