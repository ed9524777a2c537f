"""``AsyncLLM`` of vLLM 0.12 over :mod:`.core`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from .core import Core, Request

#: Every engine of this process, the newest last.
engines: list[Any] = []


@dataclass
class RequestStateStats:
    """vLLM keeps times here, and nothing of drafts."""

    num_generation_tokens: int = 0


class OutputProcessor:
    def __init__(self) -> None:
        self.request_states: dict[str, asyncio.Queue[Any]] = {}

    def has_unfinished_requests(self) -> bool:
        return len(self.request_states) > 0


class AsyncLLM12:
    """vLLM 0.12: a pause keeps requests in ``generate``; sleep and wake-up touch memory alone."""

    def __init__(
        self,
        vllm_config: Any,
        executor_class: Any,
        log_stats: bool,
        usage_context: Any = None,
        stat_loggers: Any = None,
    ) -> None:
        self.vllm_config = vllm_config
        self.core = Core(getattr(vllm_config.speculative_config, "num_speculative_tokens", 0))
        self.loggers = [factory(vllm_config, 0) for factory in stat_loggers or ()]
        self.log_stats = log_stats or bool(self.loggers)
        self.output_processor = OutputProcessor()
        self.open = asyncio.Event()
        self.open.set()
        self.handler: asyncio.Task[None] | None = None
        engines.append(self)

    @classmethod
    def from_vllm_config(
        cls, vllm_config: Any, usage_context: Any = None, disable_log_stats: bool = False, stat_loggers: Any = None
    ) -> Any:
        return cls(
            vllm_config=vllm_config, executor_class=object, log_stats=not disable_log_stats, stat_loggers=stat_loggers
        )

    # -- requests ---------------------------------------------------------------------------------------------------

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, lora_request: Any = None, priority: int = 0
    ) -> AsyncIterator[Any]:
        await self._admit()
        await asyncio.sleep(0)  # the prompt is processed
        queue = self.output_processor.request_states[request_id] = asyncio.Queue()
        self.core.queue[request_id] = Request(request_id, sampling_params.max_tokens)
        if self.handler is None or self.handler.done():
            self.handler = asyncio.ensure_future(self._run())
        finished = False
        while not finished:
            output = await queue.get()
            if isinstance(output, Exception):
                raise output
            finished = output.finished
            yield output

    async def _admit(self) -> None:
        await self.open.wait()

    async def _run(self) -> None:
        while True:
            try:
                finished, stats = self.core.step()
            except RuntimeError as error:
                for queue in self.output_processor.request_states.values():
                    queue.put_nowait(error)
                return
            for request, reason in finished:
                self._tell(request, reason)
            for request in self.core.queue.values():
                if request.tokens:
                    self._tell(request, None)
            if self.log_stats:
                for logger in self.loggers:
                    logger.record(stats, None, mm_cache_stats=None, engine_idx=0)
            await asyncio.sleep(0)  # steps are counted in turns of the event loop, not in time

    def _tell(self, request: Request, reason: str | None) -> None:
        """An output: all tokens so far (verl looks at the last output alone)."""
        queue = self.output_processor.request_states.get(request.name)
        if queue is None:
            return
        if reason is not None:
            del self.output_processor.request_states[request.name]
        completion = SimpleNamespace(token_ids=request.tokens, finish_reason=reason, logprobs=None)
        metrics = RequestStateStats(len(request.tokens)) if self.log_stats else None
        queue.put_nowait(SimpleNamespace(outputs=[completion], metrics=metrics, finished=reason is not None))

    async def abort(self, request_id: str | list[str]) -> None:
        names = [request_id] if isinstance(request_id, str) else list(request_id)
        requests = [self.core.queue[name] for name in names if name in self.core.queue]
        self.core.abort(names)
        for request in requests:
            self._tell(request, "abort")

    async def pause_generation(self, *, wait_for_inflight_requests: bool = False, clear_cache: bool = True) -> None:
        if not self.open.is_set():
            return
        self.open.clear()
        await self.abort(list(self.output_processor.request_states))

    async def resume_generation(self) -> None:
        self.open.set()

    async def is_paused(self) -> bool:
        return not self.open.is_set()

    async def wait_for_requests_to_drain(self, drain_timeout: int = 300) -> None:
        """Looks at data-parallel engines alone, of which there are none here."""

    # -- memory -----------------------------------------------------------------------------------------------------

    async def sleep(self, level: int = 1) -> None:
        self.core.sleep(level)

    async def wake_up(self, tags: list[str] | None = None) -> Any:
        self.core.wake_up(tags)

    async def collective_rpc(self, method: str, timeout: Any = None, args: Any = (), kwargs: Any = None) -> None:
        if method == "sleep":
            self.core.sleep(**(kwargs or {}))

    async def reset_prefix_cache(self, **kwargs: Any) -> bool:
        return True

    async def reset_mm_cache(self) -> None:
        """No images here."""

    async def reset_encoder_cache(self) -> None:
        """No images here."""
