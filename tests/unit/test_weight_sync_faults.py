"""Weight syncs with anything going wrong anywhere: what must never be seen, and what must be so in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from verl_mtp_plugin.errors import WeightSyncError
from verl_mtp_plugin.rollout.states import ReplicaState, StateMirror
from verl_mtp_plugin.rollout.weight_sync import synchronize

from .rollout_servers import Cluster, Fault, Server, options
from .rollout_transfer import Attempt, Ends, Trainer
from .virtual_time import run

CALLS = ("pause", "drain", "release_kv", "version", "resume_kv", "resume_generation")


@dataclass(frozen=True)
class Plan:
    """What goes wrong in one sync."""

    faults: list[tuple[int, str, list[Fault]]]  # server, call, what becomes of its first uses
    attempts: list[Attempt]
    cancel_at: list[int]


ATTEMPTS = st.builds(Attempt, st.sampled_from(Ends), st.integers(0, 3), st.sampled_from((True, True, False, None)))
FAULTS = st.tuples(st.integers(0, 3), st.sampled_from(CALLS), st.lists(st.sampled_from(Fault), min_size=1, max_size=2))
PLANS = st.builds(
    Plan,
    st.lists(FAULTS, max_size=2),
    st.just([]) | st.lists(ATTEMPTS, max_size=3),
    st.just([]) | st.lists(st.integers(0, 25), max_size=2),
)


class WeightSyncs(RuleBasedStateMachine):
    """A job that synchronizes again and again. The servers check every instant, :meth:`sync` checks every end."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.cluster = Cluster(1)
        self.mirror = StateMirror()
        self.named: set[Server] = set()  # BAD, and an error said so

    @initialize(size=st.integers(1, 4), releases=st.booleans(), retries=st.integers(0, 2), repeatable=st.booleans())
    def start(self, size: int, releases: bool, retries: int, repeatable: bool) -> None:
        self.cluster = Cluster(size)
        self.releases, self.retries, self.repeatable = releases, retries, repeatable

    @rule(plan=PLANS)
    def sync(self, plan: Plan) -> None:
        self.step += 1
        for server, call, faults in plan.faults:
            self.cluster.servers[server % len(self.cluster.servers)].faults[call] = list(faults)
        self.cluster.cancel_at.update(plan.cancel_at)
        named_before = set(self.named)
        trainer = Trainer(self.cluster, self.step, *plan.attempts, releases=self.releases)
        trainer.repeatable = self.repeatable
        outcome = run(self._sync(trainer))
        bad = {s for s in self.cluster.servers if self.mirror.state(s) is ReplicaState.BAD}
        if isinstance(outcome, WeightSyncError):
            new = bad - named_before
            wanted = new or named_before
            assert not wanted or set(outcome.replicas) == {server.name for server in wanted}
            assert outcome.replicas
            assert outcome.step
            self.named |= new
        elif outcome is None:
            assert {server.weights for server in self.cluster.servers} == {self.step}
        assert bad == self.named  # nothing is given up in silence
        self.cluster.forget_faults()

    async def _sync(self, trainer: Trainer) -> BaseException | None:
        cluster = self.cluster
        cluster.calls = 0
        wanted = options(free_cache_engine=self.releases, retries=self.retries, version=self.step)
        cluster.caller = asyncio.ensure_future(synchronize(cluster.servers, trainer, wanted, self.mirror))
        outcome: Any = (await asyncio.gather(cluster.caller, return_exceptions=True))[0]
        cluster.caller = None
        await cluster.settled()
        if isinstance(outcome, WeightSyncError | asyncio.CancelledError):
            return outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return None

    @precondition(lambda self: self.named)
    @rule()
    def replace(self) -> None:
        """What the error advises: take the BAD servers out; new ones come up with the others' weights."""
        good = [server for server in self.cluster.servers if server not in self.named]
        step = good[0].weights if good else self.step
        new = Cluster(len(self.named), step=step).servers
        for server in new:
            server.move_to(self.cluster)
        self.cluster.servers = good + new
        self.cluster.buffers = False
        self.named.clear()

    @invariant()
    def every_server_that_is_not_bad_serves_one_complete_version(self) -> None:
        good = [server for server in self.cluster.servers if server not in self.named]
        self.cluster.check()
        assert all(server.alive and not server.paused and server.kv_mapped for server in good)
        assert len({server.weights for server in good}) <= 1
        assert all(self.mirror.state(server) is ReplicaState.SERVING for server in good)


WeightSyncs.TestCase.settings = settings(
    max_examples=300, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWeightSyncs = WeightSyncs.TestCase


def cancelled_at(calls: Iterable[int], *attempts: Attempt) -> tuple[BaseException | None, list[int]]:
    cluster = Cluster(2)
    cluster.cancel_at.update(calls)
    trainer = Trainer(cluster, 1, *attempts)

    async def main() -> BaseException | None:
        cluster.caller = asyncio.ensure_future(synchronize(cluster.servers, trainer, options(version=1), StateMirror()))
        outcome: Any = (await asyncio.gather(cluster.caller, return_exceptions=True))[0]
        await cluster.settled()
        return outcome if isinstance(outcome, BaseException) else None

    outcome = run(main())
    assert not any(server.paused for server in cluster.servers)
    return outcome, [server.weights for server in cluster.servers]


@pytest.mark.parametrize("call", range(13))
def test_cancelled_at_every_call(call: int) -> None:
    """Two replicas: calls 0 to 5 pause, drain and release, 6 is the transfer, the rest follows it."""
    outcome, weights = cancelled_at([call])
    assert isinstance(outcome, asyncio.CancelledError)
    assert weights == ([0, 0] if call < 6 else [1, 1])


def test_cancelled_again_and_again() -> None:
    outcome, weights = cancelled_at(list(range(20)) * 3, Attempt(Ends.BREAKS))
    assert isinstance(outcome, asyncio.CancelledError)
    assert weights == [0, 0]
    outcome, weights = cancelled_at(list(range(6, 20)) * 3, Attempt(Ends.BREAKS, server=1))
    assert isinstance(outcome, asyncio.CancelledError)
    assert weights == [1, 1]  # the retry was not given up: half-written servers would have been lost


@pytest.mark.parametrize("call", ["pause", "drain", "release_kv"])
def test_a_cancelled_sync_does_not_wait_for_a_server_that_is_silent(call: str) -> None:
    cluster = Cluster(2)
    cluster.servers[1].faults[call] = [Fault.SILENT]
    sync = synchronize(cluster.servers, Trainer(cluster, 1), options(), StateMirror())

    async def main() -> float:
        start = asyncio.get_running_loop().time()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(sync, timeout=5)
        return asyncio.get_running_loop().time() - start

    assert run(main()) < 6
    assert [(server.paused, server.weights) for server in cluster.servers] == [(False, 0)] * 2


def test_without_a_fault_nothing_is_cancelled() -> None:
    assert cancelled_at([]) == (None, [1, 1])
