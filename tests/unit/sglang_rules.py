"""SGLang's tokenizer manager and scheduler as far as memory goes: what ends the scheduler, and how long it takes.

The rules are those that tests/rollout shows on the real ones: a release while something runs, a resume of what is not
released, and a step without memory each end it; a scheduler that has ended answers nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

KV, WEIGHTS = "kv_cache", "weights"


class Lock:
    """The lock that every request holds from the door to its answer."""

    def __init__(self) -> None:
        self.readers = 0

    async def is_locked(self) -> bool:
        return self.readers > 0


class Manager:
    """A ``TokenizerManager`` whose scheduler takes ``latency(message)`` seconds of virtual time for each message."""

    def __init__(self, latency: Callable[[str], float] = lambda message: 0.01) -> None:
        self.latency = latency
        self.is_pause = False
        self.is_pause_cond = asyncio.Condition()
        self.model_update_lock = Lock()
        self.rid_to_state: dict[int, Any] = {}
        self.offloaded: set[str] = set()
        self.death = ""
        self.sent: list[str] = []
        self.running = 0  # requests in the scheduler
        self.unread = 0  # steps whose result nobody has looked at
        self._turn = asyncio.Lock()  # one message after the other

    def auto_create_handle_loop(self) -> None:
        """There is nobody to read for."""

    async def get_internal_state(self) -> list[dict[str, Any]]:
        return [{"memory_usage": {"kvcache": 1.0}}]

    async def flush_cache(self) -> Any:
        return SimpleNamespace(success=await self._message("flush", lambda: not self._busy))

    async def release(self, obj: Any) -> None:
        def act() -> None:
            assert not self._busy, "released while it runs"
            assert not self.offloaded & set(obj.tags), "released twice"
            self.offloaded |= set(obj.tags)

        await self._message(f"release {' '.join(obj.tags)}", act)

    async def resume(self, obj: Any) -> None:
        def act() -> None:
            assert set(obj.tags) <= self.offloaded, "resumed what was not released"
            self.offloaded -= set(obj.tags)

        await self._message(f"resume {' '.join(obj.tags)}", act)

    async def generate(self, name: int, seconds: float) -> str:
        """A request, through the door, to its answer."""
        async with self.is_pause_cond:
            await self.is_pause_cond.wait_for(lambda: not self.is_pause)
        self.model_update_lock.readers += 1
        self.rid_to_state[name] = SimpleNamespace(finished=False)
        try:
            await asyncio.sleep(self.latency("tokenize"))
            self.running += 1
            if self.offloaded:
                await self._die("ran without its memory")
            await asyncio.sleep(seconds)
            if self.offloaded:
                await self._die("ran without its memory")
        finally:
            self.running -= 1
            del self.rid_to_state[name]
            self.model_update_lock.readers -= 1
        return "done"

    @property
    def _busy(self) -> bool:
        return self.running + self.unread > 0

    async def _message(self, message: str, act: Callable[[], Any]) -> Any:
        self.sent.append(message)
        async with self._turn:
            await asyncio.sleep(self.latency(message.partition(" ")[0]))
            if self.death:
                await asyncio.Event().wait()
            try:
                return act()
            except AssertionError as error:
                await self._die(str(error))

    async def _die(self, reason: str) -> None:
        self.death = self.death or reason
        await asyncio.Event().wait()
