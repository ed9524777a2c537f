"""The states of a rollout replica in a weight sync, and which step leads from which to which. Standard library only.

A state is what must be assumed of the server. Steps that take something away (pause, release, the first byte of new
weights) move the state *before* the call, since a call that fails or never answers may have had its effect; steps that
give something back move it *after* the call has succeeded.

=============  =========  ==========  =======================
state          server     KV cache    weights
=============  =========  ==========  =======================
SERVING        serving    mapped      complete
PAUSED         paused     mapped      complete, old
DRAINED        paused     mapped      complete, old
KV_RELEASED    paused     released    complete, old
TRANSFERRING   paused     either      perhaps half-written
TRANSFERRED    paused     either      complete, new
KV_RESUMED     paused     mapped      complete, old or new
BAD            unknown    unknown     unknown
=============  =========  ==========  =======================
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final
from weakref import WeakKeyDictionary


class ReplicaState(str, Enum):
    """How far a replica is in a weight sync."""

    SERVING = "serving"
    PAUSED = "paused"
    DRAINED = "drained"
    KV_RELEASED = "kv_released"
    TRANSFERRING = "transferring"
    TRANSFERRED = "transferred"
    KV_RESUMED = "kv_resumed"
    BAD = "bad"  # given up: it is not asked for anything any more, and an error has named it

    def __str__(self) -> str:
        return self.value


class Step(str, Enum):
    """What is done to a replica."""

    PAUSE = "pause"
    DRAIN = "drain"
    RELEASE_KV = "kv_release"
    BEGIN_TRANSFER = "begin_transfer"
    END_TRANSFER = "transfer"
    RESUME_KV = "kv_resume"
    RESUME_GENERATION = "resume_generation"
    GIVE_UP = "give_up"

    def __str__(self) -> str:
        return self.value


_S, _T = ReplicaState, Step

#: (state, step) -> state. What is not here must not happen. There is no way from TRANSFERRING to SERVING but through
#: TRANSFERRED, and none from KV_RELEASED but through KV_RESUMED.
TRANSITIONS: Final[Mapping[tuple[ReplicaState, Step], ReplicaState]] = MappingProxyType(
    {
        (_S.SERVING, _T.PAUSE): _S.PAUSED,
        (_S.PAUSED, _T.DRAIN): _S.DRAINED,
        (_S.DRAINED, _T.RELEASE_KV): _S.KV_RELEASED,
        (_S.DRAINED, _T.BEGIN_TRANSFER): _S.TRANSFERRING,  # free_cache_engine=False: the cache stays
        (_S.KV_RELEASED, _T.BEGIN_TRANSFER): _S.TRANSFERRING,
        (_S.TRANSFERRING, _T.BEGIN_TRANSFER): _S.TRANSFERRING,  # another attempt
        (_S.TRANSFERRING, _T.END_TRANSFER): _S.TRANSFERRED,
        (_S.TRANSFERRED, _T.RESUME_KV): _S.KV_RESUMED,  # nothing to call where the cache stayed
        (_S.KV_RESUMED, _T.RESUME_GENERATION): _S.SERVING,
        # undone before anything was written
        (_S.KV_RELEASED, _T.RESUME_KV): _S.KV_RESUMED,
        (_S.PAUSED, _T.RESUME_GENERATION): _S.SERVING,
        (_S.DRAINED, _T.RESUME_GENERATION): _S.SERVING,
        **{(state, _T.GIVE_UP): _S.BAD for state in _S if state is not _S.BAD},
    }
)


class IllegalTransitionError(RuntimeError):
    """The driver wanted a step that the table does not have: an error of this package, not of the server."""


class StateMirror:
    """The state of every replica, as known in this process. A replica that was never synchronized is SERVING."""

    def __init__(self) -> None:
        self._states: WeakKeyDictionary[object, tuple[ReplicaState, str]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def state(self, replica: object) -> ReplicaState:
        """The state of a replica (for verl's: the ``RolloutReplica`` object)."""
        return self._states.get(replica, (ReplicaState.SERVING, ""))[0]

    def reason(self, replica: object) -> str:
        """Why a replica is BAD; "" otherwise."""
        return self._states.get(replica, (ReplicaState.SERVING, ""))[1]

    def move(self, replica: object, step: Step, reason: str = "") -> ReplicaState:
        """Take one step.

        Raises:
            IllegalTransitionError: the table has no such step from the replica's state.
        """
        with self._lock:
            before = self.state(replica)
            after = TRANSITIONS.get((before, step))
            if after is None:
                raise IllegalTransitionError(f"{replica!r} is {before}: no step {step} from there")
            self._states[replica] = (after, reason)
            return after


#: The replicas of this process's weight syncs.
STATES: Final = StateMirror()
