"""Patches of coroutine functions: light to import, since they are armed at ``import verl``."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

Wrapper = Callable[..., Awaitable[Any]]


def around_async(wrapper: Wrapper) -> Callable[[Any], Any]:
    """A builder from ``async wrapper(original, *args, **kwargs)``.

    Ray must see that an actor's method is a coroutine function, which a plain function around one is not.
    """

    def build(original: Any) -> Any:
        @functools.wraps(original)
        async def replacement(*args: Any, **kwargs: Any) -> Any:
            return await wrapper(original, *args, **kwargs)

        return replacement

    return build


def later(module: str, name: str) -> Wrapper:
    """``module.name``, imported at the first call."""

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await getattr(import_module(module), name)(*args, **kwargs)

    return wrapper
