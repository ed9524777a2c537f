"""One weight sync, step by step: what is called in which order, what is undone, and what the error says."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from verl_mtp_plugin.errors import MtpPluginError, WeightSyncError
from verl_mtp_plugin.rollout.report import SyncReport
from verl_mtp_plugin.rollout.states import ReplicaState, StateMirror
from verl_mtp_plugin.rollout.weight_sync import synchronize

from .rollout_servers import KV_BYTES, Cluster, Fault, Server, options
from .rollout_transfer import Attempt, Ends, Trainer
from .virtual_time import HangsError, run

BEFORE = ("pause", "drain", "release_kv")


class Job:
    """Two servers at step 4, and a trainer that sends step 5."""

    def __init__(self, *attempts: Attempt, size: int = 2, **changed: Any) -> None:
        self.cluster, self.mirror = Cluster(size, step=4), StateMirror()
        self.servers = self.cluster.servers
        self.options = options(**{"version": 5, **changed})
        self.trainer = Trainer(self.cluster, 5, *attempts, releases=self.options.free_cache_engine)

    async def _main(self) -> SyncReport:
        try:
            return await synchronize(self.servers, self.trainer, self.options, self.mirror)
        finally:
            await self.cluster.settled()

    def sync(self) -> SyncReport:
        return run(self._main())

    def fails(self) -> WeightSyncError:
        with pytest.raises(WeightSyncError) as caught:
            self.sync()
        return caught.value

    def states(self) -> list[str]:
        return [str(self.mirror.state(server)) for server in self.servers]


def truth(server: Server) -> tuple[bool, bool, int]:
    """Does it serve, is its cache mapped, which weights does it have?"""
    return not server.paused, server.kv_mapped, server.weights


# -- when all goes well ------------------------------------------------------------------------------------------------


def test_the_steps_in_their_order() -> None:
    job = Job()
    job.servers[0].running = 7
    report = job.sync()
    steps = ["pause", "drain", "release_kv", "version", "resume_kv", "resume_generation"]
    assert [server.calls for server in job.servers] == [steps, steps]
    assert job.trainer.log == ["run"]  # verl's own body finalizes
    assert [truth(server) for server in job.servers] == [(True, True, 5)] * 2
    assert job.states() == ["serving"] * 2
    assert report.upstream == {"checkpoint_engine/flushes": 1.0}
    delay = pytest.approx(0.01)
    assert report.metrics() == {
        "weight_sync/pause_s": delay,
        "weight_sync/drain_s": delay,
        "weight_sync/kv_release_s": delay,
        "weight_sync/transfer_s": pytest.approx(2.0),  # a second for each server
        "weight_sync/kv_resume_s": delay,
        "weight_sync/kv_freed_gib": 2 * KV_BYTES / 2**30,
        "weight_sync/aborted_requests": 7.0,
        "weight_sync/retries": 0.0,
    }


def test_without_free_cache_engine_the_cache_stays() -> None:
    job = Job(free_cache_engine=False)
    report = job.sync()
    assert [server.calls for server in job.servers] == [["pause", "drain", "version", "resume_generation"]] * 2
    assert [truth(server) for server in job.servers] == [(True, True, 5)] * 2
    assert job.states() == ["serving"] * 2
    assert "weight_sync/kv_freed_gib" not in report.metrics()


def test_without_a_step_versions_are_not_asked() -> None:
    job = Job(version=None)
    job.sync()
    assert "version" not in job.servers[0].calls


def test_servers_that_do_not_number_their_weights_are_believed() -> None:
    job = Job()
    for server in job.servers:
        server.version = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
    job.sync()
    assert [truth(server) for server in job.servers] == [(True, True, 5)] * 2


# -- before the transfer: undone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.RAISES, Fault.RAISES_AFTER, Fault.SILENT, Fault.SILENT_AFTER, Fault.LATE])
@pytest.mark.parametrize("call", BEFORE)
def test_a_step_that_fails_is_undone(call: str, fault: Fault) -> None:
    job = Job()
    job.servers[1].faults[call] = [fault]
    error = job.fails()
    assert [truth(server) for server in job.servers] == [(True, True, 4)] * 2
    assert job.states() == ["serving"] * 2
    assert job.trainer.log == []
    step = {"release_kv": "kv_release"}.get(call, call)
    assert (error.replicas, error.step) == (("replica 1",), step)
    assert f"replica 1: {step} failed" in error.found
    assert error.advice == "No weight was written: all other replicas serve their old weights again."
    job.sync()  # nothing stands in the way of the next one
    assert [truth(server) for server in job.servers] == [(True, True, 5)] * 2


def test_an_engine_that_never_drains_keeps_serving() -> None:
    job = Job(size=1, drain_timeout_s=30)
    job.servers[0].faults["drain"] = [Fault.SILENT]
    error = job.fails()
    assert str(error) == (
        "verl-mtp-plugin: found replica 0: drain failed: UnansweredError: no answer after 30 s; expected every engine "
        "to become idle. No weight was written: all other replicas serve their old weights again."
    )
    assert truth(job.servers[0]) == (True, True, 4)


@pytest.mark.parametrize("call", BEFORE)
def test_a_server_that_dies_is_given_up_alone(call: str) -> None:
    job = Job()
    job.servers[0].faults[call] = [Fault.DIES]
    error = job.fails()
    assert (error.replicas, job.states()) == (("replica 0",), ["bad", "serving"])
    assert truth(job.servers[1]) == (True, True, 4)
    assert "Given up: replica 0." in error.advice
    assert "remove_replicas()" in error.advice
    assert "replica 0 is dead" in job.mirror.reason(job.servers[0])


# -- in the transfer: tried again --------------------------------------------------------------------------------------


def test_a_broken_transfer_is_finalized_and_tried_again() -> None:
    job = Job(Attempt(Ends.BREAKS, server=1), retries=1)
    report = job.sync()
    assert job.trainer.log == ["run", "finalize", "run"]
    assert [truth(server) for server in job.servers] == [(True, True, 5)] * 2
    assert job.servers[0].calls.count("resume_kv") == 1  # the cache came back once, at the end
    assert report.metrics()["weight_sync/retries"] == 1.0
    assert report.metrics()["weight_sync/transfer_s"] == pytest.approx(4.0)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_transfer_that_always_breaks_gives_all_up(retries: int) -> None:
    job = Job(*[Attempt(Ends.BREAKS)] * 9, retries=retries)
    error = job.fails()
    assert job.trainer.log == ["run", "finalize"] * (retries + 1)
    assert [(server.paused, server.kv_mapped) for server in job.servers] == [(True, True)] * 2
    assert job.states() == ["bad"] * 2
    assert (error.replicas, error.step) == (("replica 0", "replica 1"), "transfer")
    assert (
        error.found == f"replica 0, replica 1: transfer failed in attempt {retries + 1}: RuntimeError: connection lost"
    )
    assert error.advice.endswith("No other replica is left to serve.")
    assert isinstance(error.__cause__, RuntimeError)
    again = job.fails()
    assert (again.replicas, job.trainer.log) == (error.replicas, ["run", "finalize"] * (retries + 1))
    assert "given up earlier: replica 0: transfer failed" in again.found


def test_weights_sent_as_differences_are_not_sent_again() -> None:
    job = Job(Attempt(Ends.BREAKS), retries=3)
    job.trainer.repeatable = False
    job.fails()
    assert job.trainer.log == ["run", "finalize"]


@pytest.mark.parametrize("ends", [Ends.STUCK, Ends.LATE])
def test_a_transfer_that_does_not_return_is_left_alone(ends: Ends) -> None:
    """Another one beside it could write into servers that serve; the cache might find no room."""
    job = Job(Attempt(ends), retries=3)
    job.fails()
    assert job.trainer.log == ["run"]
    assert [(server.paused, server.kv_mapped) for server in job.servers] == [(True, False)] * 2
    assert job.states() == ["bad"] * 2


@pytest.mark.parametrize("answered", [False, None])
def test_workers_that_do_not_finalize_are_not_asked_again(answered: bool | None) -> None:
    job = Job(Attempt(Ends.BREAKS, finalize=answered), retries=3)
    job.fails()
    assert job.trainer.log == ["run", "finalize"]
    assert not any(server.kv_mapped for server in job.servers)


def test_the_cache_of_a_bad_engine_that_would_start_with_it_stays_released() -> None:
    job = Job(Attempt(Ends.BREAKS), retries=0)
    job.servers[1].stays_paused = False
    job.fails()
    assert [server.kv_mapped for server in job.servers] == [True, False]


def test_a_server_that_kept_its_old_weights_is_given_up_alone() -> None:
    job = Job(*[Attempt(Ends.FORGETS, server=1)] * 2, retries=1)
    error = job.fails()
    assert job.trainer.log == ["run", "run"]
    assert job.states() == ["serving", "bad"]
    assert truth(job.servers[0]) == (True, True, 5)
    assert job.servers[1].paused
    assert "it reports the weights of step 4 where 5 were sent" in error.found
    assert error.replicas == ("replica 1",)


# -- after the transfer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.RAISES, Fault.SILENT, Fault.DIES])
@pytest.mark.parametrize("call", ["resume_kv", "resume_generation"])
def test_a_server_that_cannot_resume_is_given_up_alone(call: str, fault: Fault) -> None:
    job = Job(size=3)
    job.servers[2].faults[call] = [fault]
    error = job.fails()
    assert job.states() == ["serving", "serving", "bad"]
    assert [truth(server) for server in job.servers[:2]] == [(True, True, 5)] * 2
    assert job.servers[2].paused
    assert error.replicas == ("replica 2",)
    assert error.advice.endswith("All other replicas serve the new weights.")


def test_a_server_without_its_cache_is_not_asked_to_serve() -> None:
    job = Job()
    job.servers[0].faults["resume_kv"] = [Fault.RAISES]
    job.fails()
    assert "resume_generation" not in job.servers[0].calls


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_one_sync_at_a_time() -> None:
    job = Job()

    async def main() -> list[Any]:
        syncs = [synchronize(job.servers, job.trainer, job.options, job.mirror) for _ in range(2)]
        return await asyncio.gather(*syncs, return_exceptions=True)

    first, second = run(main())
    assert isinstance(first, SyncReport)
    assert isinstance(second, WeightSyncError)
    assert "another weight sync of replica 0, replica 1" in str(second)


def test_what_verl_does_itself_hangs() -> None:
    """The same servers in verl's order: a step that raises ends it there, one that is silent never ends."""

    async def plain(job: Job) -> None:
        for call in BEFORE:
            await asyncio.gather(*(getattr(server, call)() for server in job.servers))
        await job.trainer.run()
        for call in ("resume_kv", "resume_generation"):
            await asyncio.gather(*(getattr(server, call)() for server in job.servers))

    job = Job(Attempt(Ends.BREAKS))
    with pytest.raises(RuntimeError, match="connection lost"):
        run(plain(job))
    assert [(server.paused, server.kv_mapped) for server in job.servers] == [(True, False)] * 2
    job = Job()
    job.servers[0].faults["release_kv"] = [Fault.SILENT]
    with pytest.raises(HangsError):
        run(plain(job))


def test_errors_travel_between_processes() -> None:
    error = WeightSyncError(replicas=("replica 0",), step="drain", found="a", expected="b", advice="c")
    for original in (error, MtpPluginError(found="a", expected="b", advice="c")):
        copy = pickle.loads(pickle.dumps(original))
        assert (type(copy), str(copy), vars(copy)) == (type(original), str(original), vars(original))


def test_the_error_of_a_cancelled_sync_names_who_failed_and_not_who_was_left_waiting() -> None:
    job = Job()
    job.servers[0].faults["resume_generation"] = [Fault.RAISES]
    job.servers[1].faults["drain"] = [Fault.SILENT]

    async def main() -> None:
        await asyncio.wait_for(synchronize(job.servers, job.trainer, job.options, job.mirror), timeout=5)

    with pytest.raises(WeightSyncError) as caught:
        run(main())
    assert caught.value.found == "replica 0: resume_generation failed: RuntimeError: refused"
    assert truth(job.servers[1]) == (True, True, 4)


def test_no_state_but_serving_and_bad_outlives_a_sync() -> None:
    for call in (*BEFORE, "version", "resume_kv", "resume_generation"):
        for fault in Fault:
            job = Job(retries=0)
            job.servers[0].faults[call] = [fault]
            if fault is Fault.RAISES_AFTER and call == "drain":
                job.servers[1].faults["resume_generation"] = [fault]
            job.fails()
            assert set(job.states()) <= {str(ReplicaState.SERVING), str(ReplicaState.BAD)}


# -- whoever else resumes generation -----------------------------------------------------------------------------------


def test_a_server_with_half_written_weights_is_told_why_it_must_not_serve() -> None:
    job = Job(Attempt(Ends.BREAKS, server=1), Attempt(Ends.BREAKS, server=1))
    job.fails()
    assert [server.held for server in job.servers] == [f"replica {i}: {TWICE}" for i in (0, 1)]
    adopted = StateMirror()  # the same servers for a manager that knows nothing of it
    job.mirror = adopted
    job.sync()
    assert [server.held for server in job.servers] == ["", ""]


TWICE = "transfer failed in attempt 2: RuntimeError: connection lost"
