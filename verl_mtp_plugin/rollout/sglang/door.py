"""SGLang's door: ``is_pause`` of its tokenizer manager, at which new requests wait while it is set.

verl closes it for a weight sync (``pause_generation``), and before a server sleeps it does not. A request that came
between drain and release would end the scheduler, and one that came after would run on memory that is not there. So a
release closes the door itself if nobody has, and the resume opens it again. verl also opens the door of a server that
sleeps (after a validation on the trainer's GPUs): that happens when its memory is back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Door:
    """Who has closed the door of one tokenizer manager, as far as it is this package."""

    closed: bool = False  # by a release
    retracted: bool = False  # by retract_all_requests: callers wait inside
    wanted_open: bool = False  # verl has asked for it while memory was away

    async def close(self, manager: Any) -> None:
        """Hold new requests back; those inside go on."""
        async with manager.is_pause_cond:
            if not manager.is_pause:
                manager.is_pause = self.closed = True

    async def open(self, manager: Any) -> None:
        """Undo :meth:`close`. A door that verl has closed stays closed."""
        async with manager.is_pause_cond:
            if self.closed:
                manager.is_pause = self.closed = False
                manager.is_pause_cond.notify_all()

    def taken_over(self, *, retracted: bool) -> None:
        """verl has closed the door, and will open it."""
        self.closed, self.retracted, self.wanted_open = False, retracted, False

    def opened(self) -> None:
        """verl has opened the door."""
        self.closed = self.retracted = self.wanted_open = False

    @staticmethod
    def waiting(manager: Any) -> int:
        """Requests that wait at the door, as far as asyncio tells."""
        return len(getattr(manager.is_pause_cond, "_waiters", ()))
