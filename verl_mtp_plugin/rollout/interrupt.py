"""Ctrl-C during a weight sync: the sync hears of it at once, winds down within seconds, and hands it on at its end.

Python's own ways do not fit. A KeyboardInterrupt in the middle of a step leaves servers paused that nobody names;
``asyncio.run`` cancels the task instead, and a cancelled sync waits for the end of a transfer that may take minutes.
So while a sync runs SIGINT is its own, and afterwards it goes to whoever had it before, who ends the process as always.
A second one goes there straight away. Who handles SIGINT himself keeps it, and only the main thread has signals: there
nothing changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from typing import Any, Final

#: Seconds that each thing which the sync still waits for, such as its transfer, gets after a Ctrl-C.
GRACE_S: Final = 5.0


class Interrupt:
    """SIGINT while one sync runs. Made and begun in the caller's thread, which need not be the sync's own."""

    def __init__(self) -> None:
        self.asked = False
        self._over = False
        self._previous: Any = None
        self._listening = False
        self._wake: Callable[[], object] | None = None

    def begin(self) -> None:
        """From now on SIGINT comes here, if this is the main thread and Python or asyncio has it."""
        if threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGINT)
        owner = getattr(previous, "__self__", None)
        if isinstance(owner, Interrupt) and owner._over:  # left behind by a sync that ended in another thread
            previous = owner._previous
        if previous is not signal.default_int_handler and not _is_asyncios(previous):
            return
        self._previous, self._listening = previous, True
        signal.signal(signal.SIGINT, self._handle)

    def heard_by(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` in the running loop when SIGINT comes."""
        loop = asyncio.get_running_loop()
        self._wake = lambda: loop.call_soon_threadsafe(wake)

    def end(self) -> None:
        """The sync is over: SIGINT is its former owner's again, and one that came is handed on.

        Raises:
            KeyboardInterrupt: one came, and its former owner is Python's own handler.
        """
        self._over = True
        if not self._listening:
            return
        if threading.current_thread() is threading.main_thread():
            self._give_back()
            if self.asked:
                self._pass_on()
        elif self.asked:
            signal.raise_signal(signal.SIGINT)  # reaches _handle in the main thread

    def _handle(self, number: int, frame: Any) -> None:
        again, self.asked = self.asked, True
        if self._wake is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._wake()
        if self._over or again or self._wake is None:
            self._give_back()
            self._pass_on()

    def _give_back(self) -> None:
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._previous)

    def _pass_on(self) -> None:
        self._previous(signal.SIGINT, None)


def _is_asyncios(handler: Any) -> bool:
    """Whether a handler is that of ``asyncio.run``, which cancels its task (Python >= 3.11)."""
    runner = getattr(asyncio, "Runner", None)
    return runner is not None and isinstance(getattr(getattr(handler, "func", None), "__self__", None), runner)
