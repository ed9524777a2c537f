"""A trainer that sends its weights to the servers of :mod:`.rollout_servers`, and every way in which that can end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .rollout_servers import HALF, TRANSFER_S, Cluster, Server, ViolationError


class Ends(Enum):
    """How one attempt ends."""

    WELL = "all servers complete"
    BREAKS = "raises while one server is half-written; those after it keep their old weights"
    BREAKS_AFTER = "all servers complete, then raises"
    STUCK = "never returns, one server half-written"
    LATE = "returns after the limit"
    FORGETS = "returns, but one server has kept its old weights"


@dataclass
class Attempt:
    ends: Ends = Ends.WELL
    server: int = 0  # the one concerned
    finalize: bool | None = True  # whether all workers answer; None: it raises


class Trainer:
    """Sends the weights of one step."""

    def __init__(self, cluster: Cluster, step: int, *attempts: Attempt, releases: bool = True) -> None:
        self.repeatable = True
        self._cluster, self._step, self._attempts, self._releases = cluster, step, list(attempts), releases
        self._last = Attempt()
        self._sending = False
        self.log: list[str] = []

    async def run(self) -> Any:
        self._cluster.called()
        self.log.append("run")
        self._last = self._attempts.pop(0) if self._attempts else Attempt()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._cluster.handlers.append(asyncio.ensure_future(self._send(self._last, answer)))
        return await answer

    async def _send(self, attempt: Attempt, answer: asyncio.Future[Any]) -> None:
        """Goes on when nobody waits for it any more, as a thread does."""
        self._sending = True
        await self._send_all(attempt, answer)
        self._sending = attempt.ends is Ends.STUCK

    async def _send_all(self, attempt: Attempt, answer: asyncio.Future[Any]) -> None:
        servers = self._cluster.servers
        chosen = servers[attempt.server % len(servers)]
        if self._cluster.buffers:
            raise ViolationError("a transfer begins while workers hold the buffers of another one")
        self._cluster.buffers = True
        for server in servers:
            if attempt.ends is Ends.FORGETS and server is chosen:
                continue
            if not server.alive:
                _settle(answer, RuntimeError(f"{server.name} is dead"))
                return
            self._write(server, HALF)
            await asyncio.sleep(1.0)
            if server is chosen and attempt.ends is Ends.BREAKS:
                _settle(answer, RuntimeError("connection lost"))
                return
            if server is chosen and attempt.ends is Ends.STUCK:
                return
            if server is chosen and attempt.ends is Ends.LATE:
                await asyncio.sleep(TRANSFER_S)
            self._write(server, self._step)
        if attempt.ends is Ends.BREAKS_AFTER:
            _settle(answer, RuntimeError("lost at the end"))
            return
        self._cluster.buffers = False  # verl finalizes in the same body
        _settle(answer, {"checkpoint_engine/flushes": 1.0})

    def _write(self, server: Server, weights: int) -> None:
        if server.alive and self._releases and server.kv_mapped:
            raise ViolationError(f"{server.name} is written to while its KV cache is mapped")
        if server.alive and not server.paused:
            raise ViolationError(f"{server.name} is written to while it serves")
        server.weights = weights

    async def finalize(self) -> bool:
        self._cluster.called()
        self.log.append("finalize")
        if self._sending:
            self._cluster.violations.append("buffers are taken away from a transfer that is still running")
        await asyncio.sleep(0.5)
        if self._last.finalize is None:
            raise RuntimeError("no trainer")
        if self._last.finalize:
            self._cluster.buffers = False
        return self._last.finalize


def _settle(answer: asyncio.Future[Any], outcome: Any) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
