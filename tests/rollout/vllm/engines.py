"""``AsyncLLM`` of three generations: who waits while it is paused, who is refused, and who resumes."""

from __future__ import annotations

from typing import Any

from .engine_base import AsyncLLM12


class AsyncLLM24(AsyncLLM12):
    """vLLM 0.24: a pause is the core's, which queues what comes; it ends by itself when all memory is awake."""

    async def _admit(self) -> None:
        """Nobody waits here."""

    async def pause_generation(
        self, *, mode: str = "abort", wait_for_inflight_requests: Any = None, clear_cache: bool = True
    ) -> None:
        if mode == "abort":
            await self.abort(list(self.core.queue))
        self.core.paused = True

    async def resume_generation(self) -> None:
        self.core.paused = False

    async def is_paused(self) -> bool:
        return self.core.paused

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        await AsyncLLM24.pause_generation(self, mode=mode)
        self.core.sleep(level)

    async def wake_up(self, tags: list[str] | None = None) -> Any:
        self.core.wake_up(tags)
        if not self.core.asleep:
            self.core.paused = False


class RetryableRequestError(RuntimeError):
    """The engine is paused."""


class AsyncLLM33(AsyncLLM24):
    """vLLM 0.33: knows no ``wait_for_inflight_requests``, refuses requests while paused, releases the cache alone."""

    async def _admit(self) -> None:
        if self.core.paused:
            raise RetryableRequestError("paused")

    async def pause_generation(self, *, mode: str = "abort", clear_cache: bool = True) -> None:  # type: ignore[override]
        await AsyncLLM24.pause_generation(self, mode=mode)

    async def release_kv_cache_memory(self) -> None:
        self.core.release_kv_cache_memory()

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        await super().wake_up(tags)
        return not self.core.asleep


GENERATIONS = {"0.12.0": AsyncLLM12, "0.24.0": AsyncLLM24, "0.33.0": AsyncLLM33}
