"""What went wrong in a weight sync, and the one error that says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..errors import WeightSyncError
from .replica import Replica
from .states import ReplicaState, StateMirror, Step

#: What was expected of a replica in each step.
_EXPECTED: Final = {
    Step.PAUSE: "every replica to stop taking requests",
    Step.DRAIN: "every engine to become idle",
    Step.RELEASE_KV: "every replica to release its KV cache",
    Step.END_TRANSFER: "every replica to receive all weights of one step",
    Step.RESUME_KV: "every replica to map its KV cache again",
    Step.RESUME_GENERATION: "every replica to take requests again",
}
_REMOVE: Final = (
    "What is given up is not asked again: take it out with the manager's remove_replicas(), or start the job from its "
    "last checkpoint."
)


def brief(error: BaseException) -> str:
    """An error in one line. Ray's errors carry the remote one as ``cause``, and a traceback as their text."""
    cause = getattr(error, "cause", None)
    inner = cause if isinstance(cause, BaseException) else error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[-1]}" if lines else type(inner).__name__


class Failures:
    """Collects the failures of one sync."""

    def __init__(self, mirror: StateMirror) -> None:
        self._mirror = mirror
        self._noted: list[tuple[Replica, Step, str]] = []  # the text is without the replica's name
        self._first: BaseException | None = None
        self.bad: list[Replica] = []

    def note(self, replica: Replica, step: Step, error: BaseException, detail: str = "") -> None:
        """A replica failed; it may still be brought back."""
        self._noted.append((replica, step, f"{step} failed{detail}: {brief(error)}"))
        self._first = self._first or error

    def give_up(self, replica: Replica, step: Step, error: BaseException, detail: str = "") -> None:
        """A replica is BAD from now on."""
        self.note(replica, step, error, detail)
        if replica not in self.bad:
            self.bad.append(replica)
            self._mirror.move(replica.key, Step.GIVE_UP, f"{replica.name}: {self._noted[-1][2]}")

    def raise_any(self, serving: str) -> None:
        """Raise what was noted; ``serving`` says which weights the other replicas have.

        Raises:
            WeightSyncError: something was noted.
        """
        if not self._noted:
            return
        named = self.bad or list(dict.fromkeys(replica for replica, _, _ in self._noted))
        step = self._noted[0][1]
        advice = f"Given up: {', '.join(replica.name for replica in self.bad)}. {_REMOVE} " if self.bad else ""
        raise WeightSyncError(
            replicas=tuple(replica.name for replica in named),
            step=str(step),
            found="; ".join(f"{', '.join(names)}: {text}" for text, names in self._texts().items()),
            expected=_EXPECTED[step],
            advice=f"{advice}{serving}",
        ) from self._first

    def _texts(self) -> dict[str, list[str]]:
        """What happened -> to whom: one broadcast that breaks is one line, however many replicas it was for."""
        texts: dict[str, list[str]] = {}
        for replica, _, text in self._noted:
            texts.setdefault(text, []).append(replica.name)
        return texts


def refuse_busy_or_bad(replicas: Sequence[Replica], mirror: StateMirror) -> None:
    """Check that all replicas serve, as far as is known.

    Raises:
        WeightSyncError: one is BAD since an earlier sync, or is in another sync now.
    """
    states = {replica: mirror.state(replica.key) for replica in replicas}
    bad = [replica for replica, state in states.items() if state is ReplicaState.BAD]
    busy = [replica for replica, state in states.items() if state not in (ReplicaState.BAD, ReplicaState.SERVING)]
    if bad:
        raise WeightSyncError(
            replicas=tuple(replica.name for replica in bad),
            step=str(Step.PAUSE),
            found="; ".join(f"given up earlier: {mirror.reason(replica.key)}" for replica in bad),
            expected="only replicas that serve",
            advice=f"{_REMOVE} Nothing was changed now.",
        )
    if busy:
        raise WeightSyncError(
            replicas=tuple(replica.name for replica in busy),
            step=str(Step.PAUSE),
            found=f"another weight sync of {', '.join(replica.name for replica in busy)}",
            expected="one sync at a time",
            advice="Await update_weights() before calling it again.",
        )
