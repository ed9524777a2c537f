"""What one control of a verl replica calls on its servers, and what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any


class ServerCalls:
    """The calls that one control makes to a replica's servers.

    verl's replicas know which of their servers to call, and in which order; most of them drop the answers, and all
    stop waiting at the first error.
    """

    def __init__(self, handles: list[Any]) -> None:
        self.started: list[asyncio.Task[Any]] = []
        self.servers = [_Server(handle, self) for handle in handles]

    async def finish(self, control: Awaitable[Any]) -> list[Any]:
        """The servers' answers, when all of them have come.

        Raises:
            Exception: the control's own, or the first of its calls'.
        """
        try:
            await control
        finally:
            answers = await asyncio.gather(*self.started, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers


class _Server:
    """One server handle: ``server.method.remote(...)`` is passed on at once and noted."""

    def __init__(self, handle: Any, calls: ServerCalls) -> None:
        self._handle, self._calls = handle, calls

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._handle, name), self._calls)


class _Method:
    def __init__(self, method: Any, calls: ServerCalls) -> None:
        self._method, self._calls = method, calls

    def remote(self, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        call = asyncio.ensure_future(_await(self._method.remote(*args, **kwargs)))
        self._calls.started.append(call)
        return call


async def _await(reference: Awaitable[Any]) -> Any:
    return await reference
