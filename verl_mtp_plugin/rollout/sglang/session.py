"""The weight-update session that SGLang asks for since 0.5.21: opened with the first tensors, ended in any case."""

from __future__ import annotations

import logging
from typing import Any, Final

from ...errors import WeightSyncError

logger = logging.getLogger(__name__)

BEGIN: Final = "begin_weight_update"
END: Final = "end_weight_update"
_REFUSED: Final = 400  # HTTP status with which SGLang says that a session is open already, or that none is


def needed() -> bool:
    """Whether the installed SGLang has sessions; those that have none refuse nothing."""
    from sglang.srt.managers import io_struct

    return hasattr(io_struct, "BeginWeightUpdateReqInput")


class WeightUpdateSession:
    """Stands before an engine's ``update_weights_from_tensor`` for the time of one sync.

    Args:
        engine: verl's ``AsyncHttpServerAdapter``.
        replica: its name, for messages.
    """

    def __init__(self, engine: Any, replica: str) -> None:
        self._engine = engine
        self._replica = replica
        self._open = False
        self.updates = 0  # messages with tensors so far

    async def update(self, *args: Any, **kwargs: Any) -> Any:
        """What takes the place of the engine's method. Without tensors no session is opened (LoRA adapters)."""
        if not self._open and needed():
            await self._begin()
        self.updates += 1
        return await self._engine.update_weights_from_tensor(*args, **kwargs)

    async def _begin(self) -> None:
        """Open the session; one that a failed sync has left open is ended first.

        Raises:
            WeightSyncError: SGLang refuses twice.
        """
        message = {"selector": "all"}
        try:
            await self._engine._make_async_request(BEGIN, message)
        except Exception as error:
            if not _refused(error):
                raise
            logger.warning("%s: a weight-update session is open; it is ended before a new one", self._replica)
            await self._end_if_open()
            try:
                await self._engine._make_async_request(BEGIN, message)
            except Exception as again:
                raise self._error(BEGIN, again) from again
        self._open = True

    async def end(self) -> None:
        """Finish the weights that were loaded.

        Raises:
            WeightSyncError: SGLang could not.
        """
        if not self._open:
            return
        self._open = False
        try:
            await self._end_if_open()
        except Exception as error:
            raise self._error(END, error) from error

    async def abandon(self) -> None:
        """End the session of a sync that failed, so that the next one can begin; raises nothing."""
        try:
            await self.end()
        except Exception as error:
            logger.warning("%s: %s after a failed update: %s", self._replica, END, error)

    async def _end_if_open(self) -> None:
        try:
            await self._engine._make_async_request(END, {})
        except Exception as error:
            # verl repeats a request that took too long, and the first may have ended the session by then. An update
            # outside a session would have failed, so every tensor was loaded in it.
            if not _refused(error):
                raise
            logger.warning("%s: the weight-update session was ended before", self._replica)

    def _error(self, step: str, error: Exception) -> WeightSyncError:
        return WeightSyncError(
            found=f"{self._replica}: {step} failed ({type(error).__name__}: {error})",
            expected="SGLang to open and end a weight-update session around the tensors",
            advice="See the log of the SGLang server; its weights may be half-written.",
        )


def _refused(error: Exception) -> bool:
    return getattr(error, "status", None) == _REFUSED
