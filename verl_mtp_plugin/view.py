"""An object seen with some attributes changed."""

from __future__ import annotations

from typing import Any


class View:
    """``wrapped``, of which some attributes are others. The object itself stays as it is."""

    def __init__(self, wrapped: Any, **others: Any) -> None:
        self._wrapped = wrapped
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)
