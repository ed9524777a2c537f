"""One weight sync: pause, drain, release the KV cache, transfer, resume the cache, resume generation; or undo it.

What fails before the transfer is undone, and the old weights are served on. What fails in the transfer is tried again
as a whole, a bounded number of times, while everybody stays paused; then the replicas are BAD. A replica whose cache or
generation cannot be resumed is BAD alone. Every BAD replica is named in a :class:`WeightSyncError`. A cancellation
before the transfer undoes what was done; one that comes later waits until the sync has ended. Ctrl-C does the same, and
waits for seconds at most: what has not ended by then is given up and named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from ..errors import WeightSyncError
from .attempts import Attempts, Transfer
from .calls import Cancellation, Outcomes, StoppedError, call_all, each
from .failures import Failures, refuse_busy_or_bad
from .interrupt import Interrupt
from .replica import Paused, Released, Replica
from .report import SyncOptions, SyncReport
from .states import STATES, ReplicaState, StateMirror, Step

logger = logging.getLogger("verl_mtp_plugin")

_UNTOUCHED: Final = "No weight was written: all other replicas serve their old weights again."
_WRITTEN: Final = "All other replicas serve the new weights."
_NOBODY: Final = "No other replica is left to serve."


async def synchronize(
    replicas: Sequence[Replica],
    transfer: Transfer,
    options: SyncOptions,
    mirror: StateMirror = STATES,
    interrupt: Interrupt | None = None,
) -> SyncReport:
    """Bring the trainer's weights to all replicas.

    Raises:
        WeightSyncError: the sync failed; the message names the replicas that are BAD now, if any. All others serve,
            all of them the same complete weights.
        asyncio.CancelledError: the task was cancelled. Either nothing has changed or the sync is complete; after an
            ``interrupt``, the log says what else.
    """
    refuse_busy_or_bad(replicas, mirror)
    sync = _Sync(replicas, transfer, options, mirror)
    if interrupt is not None:
        interrupt.heard_by(sync.interrupted)
    return await sync.run()


class _Sync:
    def __init__(
        self, replicas: Sequence[Replica], transfer: Transfer, options: SyncOptions, mirror: StateMirror
    ) -> None:
        self._replicas, self._transfer, self._options, self._mirror = list(replicas), transfer, options, mirror
        self._cancellation = Cancellation()
        self._failures = Failures(mirror)
        self._report = SyncReport()
        self._clean = True  # every worker has dropped its transfer buffers
        self._doing = "pause"  # for the log

    def interrupted(self) -> None:
        """Ctrl-C."""
        first = not self._cancellation.interrupted
        self._cancellation.interrupt()
        if first:
            logger.warning(
                "verl-mtp-plugin: interrupted in a weight sync (%s): what can be undone is, within seconds; interrupt "
                "again to end at once",
                self._doing,
            )

    async def run(self) -> SyncReport:
        prepared = await self._prepare()
        if prepared:
            await self._write()
        if self._clean:  # a worker that still holds its buffers may leave no room for the cache
            await self._resume_kv()
        await self._resume_generation()
        cancelled = self._cancellation.asked
        nobody = len(self._failures.bad) == len(self._replicas)
        serving = _NOBODY if nobody else _WRITTEN if prepared else _UNTOUCHED
        if self._cancellation.interrupted:
            self._say_what_is_left(serving)
        elif self._failures.bad or not cancelled:
            self._failures.raise_any(serving)
        if cancelled or not prepared:
            raise asyncio.CancelledError
        return self._report

    def _say_what_is_left(self, serving: str) -> None:
        """In one line: whoever has interrupted gets a KeyboardInterrupt, not this error."""
        try:
            if self._failures.bad:
                self._failures.raise_any(serving)
        except WeightSyncError as error:
            logger.warning("interrupted weight sync: %s", error)
        else:
            logger.warning("verl-mtp-plugin: interrupted weight sync: nothing is left half done. %s", serving)

    # -- before the transfer: any failure leads straight to resuming -----------------------------------------------

    async def _prepare(self) -> bool:
        """Pause, drain, release. Whether all replicas got there."""
        options, report = self._options, self._report
        self._move(self._replicas, Step.PAUSE)
        limit = 2 * options.control_timeout_s  # a server that does not get there takes it back before it says so
        paused = await self._step(Step.PAUSE, lambda r: r.pause(), limit)
        report.pause_s = paused.seconds
        report.add_aborted([answer for answer in paused.answers.values() if isinstance(answer, Paused)])
        if self._stopped(paused):
            return False
        drained = await self._step(Step.DRAIN, lambda r: r.drain(), options.drain_timeout_s)
        report.drain_s = drained.seconds
        self._move(drained.answers, Step.DRAIN)
        if self._stopped(drained):
            return False
        if not options.free_cache_engine:
            return True
        self._move(self._replicas, Step.RELEASE_KV)
        limit = options.drain_timeout_s + options.control_timeout_s  # a server may drain in this call
        released = await self._step(Step.RELEASE_KV, lambda r: r.release_kv(), limit)
        report.add_released([a for a in released.answers.values() if isinstance(a, Released)], released.seconds)
        return not self._stopped(released)

    async def _step(self, step: Step, action: Callable[[Replica], Awaitable[Any]], limit_s: float) -> Outcomes[Replica]:
        self._doing = str(step)
        outcomes = await self._call(self._replicas, action, limit_s, stop=True)
        for replica, error in outcomes.failures.items():
            if not isinstance(error, StoppedError):
                self._failures.note(replica, step, error)
        return outcomes

    def _stopped(self, outcomes: Outcomes[Replica]) -> bool:
        return bool(outcomes.failures) or self._cancellation.asked

    # -- the transfer ----------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Transfer until every replica has the new weights, or give up those that have not."""
        attempts = Attempts(self._replicas, self._transfer, self._options, self._cancellation)
        self._doing = "transfer"
        await attempts.run(lambda: self._move(self._replicas, Step.BEGIN_TRANSFER))
        self._clean = attempts.clean
        report = self._report
        report.transfer_s, report.retries, report.upstream = attempts.seconds, attempts.made - 1, attempts.result
        for replica, cause in attempts.incomplete.items():
            self._failures.give_up(replica, Step.END_TRANSFER, cause, f" in attempt {attempts.made}")
        self._move([replica for replica in self._replicas if replica not in attempts.incomplete], Step.END_TRANSFER)
        # Others than this manager resume generation, too. Who cannot be told does as before.
        limit_s = self._options.control_timeout_s
        await self._call(self._replicas, lambda r: r.hold(self._mirror.reason(r.key)), limit_s)

    # -- after the transfer, or back without one ---------------------------------------------------------------------

    async def _resume_kv(self) -> None:
        """Map the cache of all replicas that released it; of a BAD one too, if it stays paused with it."""
        self._doing = str(Step.RESUME_KV)
        released = self._in(ReplicaState.KV_RELEASED, ReplicaState.TRANSFERRED)
        if not self._options.free_cache_engine:
            self._move(released, Step.RESUME_KV)  # nobody released anything
            return
        released += [replica for replica in self._failures.bad if replica.stays_paused]
        limit = self._options.drain_timeout_s + 2 * self._options.control_timeout_s  # a release before it may still run
        outcomes = await self._call(released, lambda r: r.resume_kv(), limit)
        self._report.kv_resume_s = outcomes.seconds
        for replica, error in outcomes.failures.items():
            self._failures.give_up(replica, Step.RESUME_KV, error)
        self._move([r for r in outcomes.answers if r not in self._failures.bad], Step.RESUME_KV)

    async def _resume_generation(self) -> None:
        self._doing = str(Step.RESUME_GENERATION)
        ready = self._in(ReplicaState.PAUSED, ReplicaState.DRAINED, ReplicaState.KV_RESUMED)
        outcomes = await self._call(ready, lambda r: r.resume_generation(), self._options.control_timeout_s)
        for replica, error in outcomes.failures.items():
            self._failures.give_up(replica, Step.RESUME_GENERATION, error)
        self._move(outcomes.answers, Step.RESUME_GENERATION)

    # ----------------------------------------------------------------------------------------------------------------

    async def _call(
        self,
        replicas: Sequence[Replica],
        action: Callable[[Replica], Awaitable[Any]],
        limit_s: float,
        *,
        stop: bool = False,
    ) -> Outcomes[Replica]:
        return await call_all(each(replicas, action), limit_s, self._cancellation, stop=stop)

    def _in(self, *states: ReplicaState) -> list[Replica]:
        return [replica for replica in self._replicas if self._mirror.state(replica.key) in states]

    def _move(self, replicas: Iterable[Replica], step: Step) -> None:
        for replica in replicas:
            self._mirror.move(replica.key, step)
