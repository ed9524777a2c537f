"""The transfer itself: all weights to all replicas, again if it fails, and which replicas have them in the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .calls import Cancellation, UnfinishedError, call_all, each
from .replica import Replica
from .report import SyncOptions

logger = logging.getLogger(__name__)


class Transfer(Protocol):
    """Moves the trainer's weights to all replicas at once."""

    #: Whether a second attempt writes every weight again. A sender of differences has spent them in the first.
    repeatable: bool

    async def run(self) -> Any:
        """Write all weights. It returns when every worker has dropped its transfer buffers."""

    async def finalize(self) -> bool:
        """After a failed :meth:`run`: let the workers drop their buffers. Whether every one of them has answered."""


class IncompleteError(RuntimeError):
    """A transfer reported success, but a replica does not have the weights that were sent."""


class Attempts:
    """One sync's attempts. One broadcast feeds all replicas, so one that raises leaves none of them complete."""

    def __init__(
        self, replicas: Sequence[Replica], transfer: Transfer, options: SyncOptions, cancellation: Cancellation
    ) -> None:
        self._replicas, self._transfer, self._options, self._cancellation = replicas, transfer, options, cancellation
        self.made = 0
        self.seconds = 0.0
        self.result: Any = None  # what the last attempt returned
        self.incomplete: dict[Replica, BaseException] = {}  # whose weights may be half-written, or of another step
        self.clean = True  # every worker has dropped its transfer buffers

    async def run(self, begin: Callable[[], None]) -> None:
        """Try until every replica is complete, no more attempts are left, or another one would do harm."""
        while True:
            begin()
            self.made += 1
            await self._attempt()
            if not self.incomplete:
                return
            cause = next(iter(self.incomplete.values()))
            logger.warning("verl-mtp-plugin: weight transfer %d failed: %s", self.made, cause)
            if self.made > self._options.retries or not (self.clean and self._transfer.repeatable):
                return
            if self._cancellation.interrupted:  # the process is about to end
                return

    async def _attempt(self) -> None:
        options = self._options
        outcomes = await call_all({None: self._transfer.run}, options.transfer_timeout_s, self._cancellation)
        self.seconds += outcomes.seconds
        error = outcomes.failures.get(None)
        if error is None:
            self.result = outcomes.answers[None]
            self.incomplete = await self._of_another_step()
            return
        self.incomplete = dict.fromkeys(self._replicas, error)
        # One that is still running must not be given another beside it, nor may its buffers be taken away.
        self.clean = not isinstance(error, UnfinishedError) and await self._finalize()

    async def _finalize(self) -> bool:
        outcomes = await call_all({None: self._transfer.finalize}, self._options.control_timeout_s, self._cancellation)
        return bool(outcomes.answers.get(None, False))

    async def _of_another_step(self) -> dict[Replica, BaseException]:
        """The replicas that do not report the step whose weights were sent; without a step nothing can be compared."""
        expected = self._options.version
        if expected is None:
            return {}
        versions = each(self._replicas, lambda replica: replica.version())
        outcomes = await call_all(versions, self._options.control_timeout_s, self._cancellation)
        if not outcomes.failures and all(version is None for version in outcomes.answers.values()):
            return {}  # the backend does not number its weights
        others = {replica: version for replica, version in outcomes.answers.items() if version != expected}
        return outcomes.failures | {
            replica: IncompleteError(f"it reports the weights of step {version} where {expected} were sent")
            for replica, version in others.items()
        }
