"""A rollout server, the worker beside it, and a trainer, as actors; what they are asked for is written down."""

from __future__ import annotations

import asyncio
from typing import Any

HALF = "half-written"


class Server:
    """What verl's server classes have in common. It is asked for tokens, and holds them back while it is paused."""

    def __init__(self, log: list[str], *, free_cache_engine: bool = True) -> None:
        self.log, self.free_cache_engine = log, free_cache_engine
        self.open = asyncio.Event()
        self.open.set()
        self.kv_mapped, self.weights = True, "step 0"
        self.global_steps: int | None = None
        self.broken: set[str] = set()  # methods that raise
        self.slow_s = 0.0  # seconds that a pause takes

    def _called(self, name: str) -> None:
        self.log.append(name)
        if name in self.broken:
            raise RuntimeError(f"{name} is broken")

    async def abort_all_requests(self, reject_request: bool = False) -> dict[str, Any]:
        self._called("abort_all_requests")
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        self.open.clear()
        return {"aborted": 2}

    async def resume_generation(self) -> None:
        self._called("resume_generation")
        self.open.set()

    async def sleep(self) -> None:
        self._called("sleep")
        self.kv_mapped = not self.free_cache_engine

    async def wake_up(self) -> None:
        self._called("wake_up")
        self.kv_mapped = True

    async def set_global_steps(self, global_steps: int) -> None:
        self.global_steps = global_steps

    async def generate(self) -> tuple[bool, str, Any]:
        await self.open.wait()
        return self.kv_mapped, self.weights, self.global_steps


class CacheServer(Server):
    """A server of verl >= 0.8.0, or one to which the plugin has given these methods."""

    async def release_kv_cache(self) -> dict[str, Any] | None:
        self._called("release_kv_cache")
        if not self.free_cache_engine:
            return None
        self.kv_mapped = False
        return {"drain_s": 0.0, "freed_bytes": 2**30, "released": ["kv_cache"]}

    async def resume_kv_cache(self) -> None:
        self._called("resume_kv_cache")
        self.kv_mapped = True


class RetractingServer(CacheServer):
    """A server to which the plugin has given this, too."""

    async def retract_all_requests(self) -> dict[str, Any]:
        self._called("retract_all_requests")
        self.open.clear()
        return {"aborted": 0, "retracted": 2}


class Worker:
    """A checkpoint engine in a process of its own: verl's CheckpointEngineWorker, or with ``server`` None a trainer."""

    def __init__(self, log: list[str], server: Server | None = None) -> None:
        self.log, self.server = log, server
        self.breaks = 0  # how many transfers break from now on
        self.stuck: asyncio.Event | None = None  # waited for in a transfer
        self.buffers = self.busy = self.overlapping = False

    async def update_weights(self, global_steps: int | None = None, mode: str = "") -> dict[str, float] | None:
        if self.server is None:
            self.log.append(f"send {mode}".strip())
            return {"checkpoint_engine/flushes": 3.0}
        self.overlapping |= self.busy
        self.busy = True
        try:
            await self._receive(self.server, global_steps)
        finally:
            self.busy = False
        return None

    async def _receive(self, server: Server, global_steps: int | None) -> None:
        server.weights = HALF
        await asyncio.sleep(0.01)
        if self.stuck is not None:
            await self.stuck.wait()
        if self.breaks:
            self.breaks -= 1
            raise RuntimeError("connection lost")
        server.weights = f"step {global_steps}"
        if global_steps is not None:
            await server.set_global_steps(global_steps)

    def execute_checkpoint_engine(self, method: str, *args: Any, **kwargs: Any) -> str:
        self.overlapping |= self.busy
        self.buffers = method != "finalize"
        self.log.append(method)
        return method
