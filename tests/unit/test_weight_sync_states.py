"""The transition table says everything about every state, and has no way round what must not be left out."""

from __future__ import annotations

import gc
from collections.abc import Set
from itertools import product

import pytest

from verl_mtp_plugin.rollout.states import TRANSITIONS, IllegalTransitionError, ReplicaState, StateMirror, Step

S, T = ReplicaState, Step

#: What must be assumed of a server in each state: does it serve, is its cache mapped, are its weights complete?
#: None: either.
SERVES = {S.SERVING: True, **dict.fromkeys(set(S) - {S.SERVING, S.BAD}, False), S.BAD: None}
MAPPED = {
    **dict.fromkeys((S.SERVING, S.PAUSED, S.DRAINED, S.KV_RESUMED), True),
    S.KV_RELEASED: False,
    **dict.fromkeys((S.TRANSFERRING, S.TRANSFERRED, S.BAD), None),
}
COMPLETE = {**dict.fromkeys(set(S) - {S.TRANSFERRING, S.BAD}, True), S.TRANSFERRING: False, S.BAD: None}


class Anything:
    """A replica is whatever can be remembered weakly."""


def reachable(start: ReplicaState, without: Set[Step] = frozenset()) -> set[ReplicaState]:
    found, new = {start}, {start}
    while new:
        new = {b for (a, step), b in TRANSITIONS.items() if a in new and step not in without} - found
        found |= new
    return found


def test_only_resuming_generation_makes_a_server_serve() -> None:
    for (before, step), after in TRANSITIONS.items():
        if SERVES[after]:
            assert (step, SERVES[before]) == (T.RESUME_GENERATION, False)
            assert MAPPED[before]
            assert COMPLETE[before]


def test_each_fact_is_changed_by_its_own_step_alone() -> None:
    for (before, step), after in TRANSITIONS.items():
        if after is S.BAD:
            continue
        if SERVES[before] and not SERVES[after]:
            assert step is T.PAUSE
        if MAPPED[before] and MAPPED[after] is False:
            assert step is T.RELEASE_KV
        if not MAPPED[before] and MAPPED[after]:
            assert step is T.RESUME_KV
        if COMPLETE[before] and not COMPLETE[after]:
            assert step is T.BEGIN_TRANSFER
        if not COMPLETE[before] and COMPLETE[after]:
            assert step is T.END_TRANSFER


def test_half_written_weights_lead_nowhere_without_the_end_of_a_transfer() -> None:
    assert reachable(S.TRANSFERRING, without={T.END_TRANSFER}) == {S.TRANSFERRING, S.BAD}
    assert reachable(S.KV_RELEASED, without={T.RESUME_KV}) == {S.KV_RELEASED, S.TRANSFERRING, S.TRANSFERRED, S.BAD}


def test_from_everywhere_there_is_a_way_to_serve_or_to_be_given_up() -> None:
    for state in set(S) - {S.BAD}:
        assert {S.SERVING, S.BAD} <= reachable(state)
        assert TRANSITIONS[state, T.GIVE_UP] is S.BAD
    assert reachable(S.BAD) == {S.BAD}


def test_every_state_and_step_is_used() -> None:
    assert {state for state, _ in TRANSITIONS} == set(S) - {S.BAD}
    assert {step for _, step in TRANSITIONS} == set(T)
    assert set(TRANSITIONS.values()) == set(S)
    assert SERVES.keys() == MAPPED.keys() == COMPLETE.keys() == set(S)


@pytest.mark.parametrize(("state", "step"), list(product(S, T)))
def test_every_pair_either_moves_or_is_refused(state: ReplicaState, step: Step) -> None:
    replica, mirror = Anything(), StateMirror()
    for way in WAYS[state]:
        mirror.move(replica, way)
    assert mirror.state(replica) is state
    wanted = TRANSITIONS.get((state, step))
    if wanted is None:
        with pytest.raises(IllegalTransitionError, match=f"is {state}: no step {step} from there"):
            mirror.move(replica, step)
        assert mirror.state(replica) is state
    else:
        assert mirror.move(replica, step) is wanted is mirror.state(replica)


_ALL = (T.PAUSE, T.DRAIN, T.RELEASE_KV, T.BEGIN_TRANSFER, T.END_TRANSFER, T.RESUME_KV)
WAYS = {
    S.SERVING: (),
    **{state: _ALL[: i + 1] for i, state in enumerate(list(S)[1:7])},
    S.BAD: (T.PAUSE, T.GIVE_UP),
}


def test_the_mirror_knows_a_replica_as_long_as_it_lives() -> None:
    mirror, replica = StateMirror(), Anything()
    mirror.move(replica, T.PAUSE)
    mirror.move(replica, T.GIVE_UP, "it never answered")
    assert (mirror.state(replica), mirror.reason(replica)) == (S.BAD, "it never answered")
    assert (mirror.state(Anything()), mirror.reason(Anything())) == (S.SERVING, "")
    assert len(mirror._states) == 1
    del replica
    gc.collect()
    assert len(mirror._states) == 0
