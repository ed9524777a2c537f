"""verl's ``CheckpointEngineManager`` over its real replica, server, workers and HTTP, on Ray, with the plugin.

SGLang's scheduler has its own rules and no model; every token says which weights made it.
"""

from __future__ import annotations

import pytest

from verl_mtp_plugin.rollout.sglang.drain import POLL_S
from verl_mtp_plugin.testing.sglang_scheduler import KV_CACHE_GB, TOKENS_PER_VERSION

from .cluster import ENVIRONMENT
from .conftest import StartHost
from .host import Host
from .stacks import LATEST, PINNED

DRAIN_S, CONTROL_S = 5.0, 30.0
LIMITS = {
    **ENVIRONMENT,
    "VERL_MTP_PLUGIN_SYNC_DRAIN_TIMEOUT_S": str(DRAIN_S),
    "VERL_MTP_PLUGIN_SYNC_CONTROL_TIMEOUT_S": str(CONTROL_S),
    "VERL_MTP_PLUGIN_SYNC_TRANSFER_TIMEOUT_S": "60",
}
#: Tokens of a request that lasts at least two seconds.
LONG = 400
TIMES = ("pause_s", "drain_s", "kv_release_s", "transfer_s", "kv_resume_s")


@pytest.fixture(scope="module", params=(*PINNED, LATEST), ids=str)
def host(request: pytest.FixtureRequest, start_host: StartHost) -> Host:
    return start_host(request.param, "tests.rollout.syncs", **LIMITS)


def _request(version: int) -> dict[str, object]:
    return {"versions": [version], "tokens": 4, "stop": "length"}


def _serving(version: int) -> dict[str, object]:
    """A server that generates with weights of one version, and has all its memory."""
    status = {"paused": False, "released": [], "in_flight": 0, "global_steps": version}
    return {"request": _request(version), "status": status}


def test_the_patches_arrive_in_the_actors(host: Host) -> None:
    found = host.play("arrived")
    assert len({pid for pid, _ in found.values()}) == 3
    assert found["driver"][1]["rollout.weight_sync"] == "applied"
    server = found["server"][1]
    names = {id for id in server if id.startswith(("rollout.sglang.server.", "rollout.sglang.memory."))}
    assert len(names) == 12
    assert {server[id] for id in names} == {"applied"}
    assert found["worker"][1]["rollout.sglang.adapter"] == "applied"


def test_requests_are_aborted_and_the_new_weights_are_served(host: Host) -> None:
    outcome = host.play("sync", step=3, requests=2)
    assert outcome["error"] == ""
    assert [(request["versions"], request["stop"]) for request in outcome["running"]] == [([0], "abort")] * 2
    answer = outcome["answer"]
    assert answer["weight_sync/aborted_requests"] == 2
    assert answer["weight_sync/retries"] == 0
    assert answer["weight_sync/kv_freed_gib"] == KV_CACHE_GB
    assert sum(answer[f"weight_sync/{name}"] for name in TIMES) <= outcome["seconds"]
    assert host.play("served") == _serving(3)


def test_a_sync_waits_for_a_late_result(host: Host) -> None:
    outcome = host.play("sync", step=4, faulty={"drain": ("busy", None)}, becomes_idle=True)
    assert outcome["error"] == ""
    assert outcome["answer"]["weight_sync/drain_s"] >= POLL_S  # it was not at first
    assert host.play("served") == _serving(4)


def test_retracted_requests_continue_where_they_were(host: Host) -> None:
    """Requests that began before a sync and end after it: nothing is lost, nothing is generated twice."""
    version = host.play("status")["global_steps"]
    before = host.play("undisturbed", tokens=LONG)["tokens"]
    assert before == [version * TOKENS_PER_VERSION + position for position in range(LONG)]
    same = host.play("retracted", step=version, tokens=LONG)
    if host.stack.sglang == "0.5.6":  # it would lose them
        assert "UnsupportedError" in same["error"]
        assert "sync_requests=abort" in same["error"]
        assert same["tokens"] == [before] * 2
        assert host.play("served") == _serving(version)
        return
    assert same["error"] == ""
    assert same["answer"]["weight_sync/aborted_requests"] == 0
    assert same["ended_meanwhile"] == [False] * 2
    assert same["tokens"] == [before] * 2
    other = host.play("retracted", step=version + 1, tokens=LONG)
    assert (other["error"], other["answer"]["weight_sync/aborted_requests"]) == ("", 0)
    for tokens in other["tokens"]:
        versions = [token // TOKENS_PER_VERSION for token in tokens]
        assert [token % TOKENS_PER_VERSION for token in tokens] == list(range(LONG))
        assert (versions, set(versions)) == (sorted(versions), {version, version + 1})
    assert host.play("served") == _serving(version + 1)


@pytest.mark.parametrize("step", ["receive", "send", "update"])
def test_a_transfer_that_fails_once_is_tried_again(host: Host, step: str) -> None:
    outcome = host.play("sync", step=5, requests=1, faulty={step: ("fail", 1)})
    assert outcome["error"] == ""
    assert outcome["answer"]["weight_sync/retries"] == 1
    assert host.play("served") == _serving(5)


def test_a_frozen_drafter_is_served_with_what_the_checkpoint_has(host: Host) -> None:
    """The server is asked, in its own process: it was started with load_format=auto."""
    assert host.play("asked_for_mtp", step=5, train=False)["error"] == ""
    assert host.play("served") == _serving(5)


def test_a_trainer_that_does_not_feed_the_drafter_is_named(host: Host) -> None:
    outcome = host.play("asked_for_mtp", step=6, train=True)
    assert outcome["error"].startswith("WeightSyncError")
    assert "replica 0: MTP is trained (mtp.enable_train=True), and the trainer sent none of its" in outcome["error"]
    assert (host.play("status")["paused"], host.play("status")["released"]) == (True, [])
    host.play("adopt")
    assert host.play("sync", step=6)["error"] == ""
    assert host.play("served") == _serving(6)


def test_an_engine_that_is_never_idle_keeps_serving_the_old_weights(host: Host) -> None:
    before = host.play("status")["global_steps"]
    outcome = host.play("sync", step=6, faulty={"drain": ("busy", None)})
    assert outcome["error"].startswith("WeightSyncError")
    assert "replica 0" in outcome["error"]
    assert "still busy" in outcome["error"]
    assert host.play("served") == _serving(before)


def test_half_written_weights_are_not_served(host: Host) -> None:
    outcome = host.play("sync", step=7, faulty={"receive": ("fail", None)})
    assert outcome["error"].startswith("WeightSyncError")
    assert "replica 0: transfer failed in attempt 2" in outcome["error"]
    status = host.play("status")
    assert (status["paused"], status["released"]) == (True, [])
    again = host.play("sync", step=8)
    assert again["error"].startswith("WeightSyncError")
    assert "given up earlier" in again["error"]
    assert host.play("status") == status


def test_the_same_server_serves_after_a_sync_that_succeeds(host: Host) -> None:
    host.play("adopt")
    assert host.play("sync", step=9)["error"] == ""
    assert host.play("served") == _serving(9)


def test_a_server_that_dies_is_named_and_nothing_hangs(host: Host) -> None:
    """The last test: there is no server after it."""
    outcome = host.play("sync", step=10, faulty={"update": ("die", None)})
    assert outcome["error"].startswith("WeightSyncError")
    assert "replica 0" in outcome["error"]
