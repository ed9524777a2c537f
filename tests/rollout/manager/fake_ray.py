"""As much of Ray as a weight sync uses: actors with asynchronous methods, references to wait for, ``get``, ``wait``.

All actors live in one event loop in a thread of its own, so that a caller that blocks in ``get`` does not stop them.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent import futures
from typing import Any

_actors = asyncio.new_event_loop()
threading.Thread(target=_actors.run_forever, daemon=True, name="actors").start()


class Ref:
    """What ``method.remote()`` returns."""

    def __init__(self, future: futures.Future[Any]) -> None:
        self.future = future

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self.future).__await__()


class _Method:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *args: Any, **kwargs: Any) -> Ref:
        async def call() -> Any:
            value = self._function(*args, **kwargs)
            return await value if inspect.isawaitable(value) else value

        return Ref(asyncio.run_coroutine_threadsafe(call(), _actors))


class Handle:
    """An actor's handle: it has the methods of the actor's class and no attributes."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> _Method:
        if name == "__ray_call__":
            return _Method(lambda function, *args: function(self._actor, *args))
        if name.startswith("_"):
            raise AttributeError(name)
        return _Method(getattr(self._actor, name))


def get(refs: Ref | Sequence[Ref]) -> Any:
    """Values in order. As in Ray, an error is raised as soon as there is one, whatever the others still do."""
    if isinstance(refs, Ref):
        return refs.future.result()
    done, _ = futures.wait([ref.future for ref in refs], return_when=futures.FIRST_EXCEPTION)
    for future in done:
        future.result()
    return [ref.future.result() for ref in refs]


def wait(refs: Sequence[Ref], *, num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
    """Those that are ready, with a value or an error, and the others."""
    assert num_returns == len(refs)
    futures.wait([ref.future for ref in refs], timeout=timeout)
    return [r for r in refs if r.future.done()], [r for r in refs if not r.future.done()]
