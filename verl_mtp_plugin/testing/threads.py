"""Threads where processes are asked for, so that what they import is imported once."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any


class ThreadProcess:
    """A thread with as much of a process's interface as SGLang uses."""

    exitcode = None

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...] = (), kwargs: Any = None, **_: Any) -> None:
        self._thread = threading.Thread(target=target, args=args, kwargs=kwargs or {}, daemon=True)
        self.start, self.is_alive, self.join = self._thread.start, self._thread.is_alive, self._thread.join

    @property
    def pid(self) -> int:
        return os.getpid()


class ThreadedMultiprocessing(ModuleType):
    """``multiprocessing`` with threads for processes."""

    Process = ThreadProcess

    def set_start_method(self, *args: Any, **kwargs: Any) -> None:
        """Threads have none."""

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)
