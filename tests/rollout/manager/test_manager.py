"""Every release's own ``update_weights`` as the transfer of ours: what is served afterwards, whatever went wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract import stacks

from .conftest import seen

VERL = pytest.mark.parametrize("verl", stacks.VERL)
#: Releases whose update_weights returns the metrics of the checkpoint engine.
RETURNS_METRICS = stacks.VERL[stacks.VERL.index("0.9.0") :]

PAUSED, RESUMED = ["abort_all_requests"] * 2, ["resume_generation"] * 2
GROUP = ["prepare"] * 2 + ["init_process_group"] * 2
FINALIZED = ["finalize"] * 2
HANG = ["hangs"] * 4
STEPS = ("pause_s", "drain_s", "kv_release_s", "transfer_s", "kv_resume_s", "retries", "aborted_requests")


def on(verl: str, case: str) -> dict[str, Any]:
    """A case with the plugin."""
    return dict(seen(verl)["plugin"][case])


def off(verl: str, case: str) -> dict[str, Any]:
    """A case without it."""
    return dict(seen(verl)["plain"][case])


def serves(step: int) -> list[list[Any]]:
    """All four servers answer: with their cache, and with the weights and the number of that step."""
    return [[True, f"step {step}", step or None]] * 4


def cache(verl: str) -> tuple[list[str], list[str]]:
    """Release and resume, as this release's replicas call them on both servers of a replica."""
    names = ("sleep", "wake_up") if verl == "0.7.1" else ("release_kv_cache", "resume_kv_cache")
    return [names[0]] * 2, [names[1]] * 2


# -- upstream alone ----------------------------------------------------------------------------------------------------


@VERL
def test_without_the_plugin_a_broken_transfer_leaves_all_servers_paused_for_ever(verl: str) -> None:
    found = off(verl, "breaks_once")
    assert found["returned"] == "RuntimeError: connection lost"
    assert found["generate"] == HANG
    assert found["kv_mapped"] == [False] * 4
    assert found["buffers"] == [True] * 5  # four workers' and the trainer's


@VERL
def test_without_the_plugin_one_server_that_refuses_stops_them_all(verl: str) -> None:
    found = off(verl, "refuses_to_pause")
    assert found["returned"] == "RuntimeError: abort_all_requests is broken"
    assert found["generate"].count("hangs") == 3  # the one that refused, and was not paused, serves


# -- with it -----------------------------------------------------------------------------------------------------------


@VERL
def test_the_patches_apply(verl: str) -> None:
    decisions = seen(verl)["decisions"]
    assert decisions == {"rollout.weight_sync": ["applied", ""], "rollout.sync_metrics": ["applied", ""]}


@VERL
@pytest.mark.parametrize("case", ["good", "awaited"])
def test_a_sync_from_blocking_and_from_asynchronous_code(verl: str, case: str) -> None:
    found, plain = on(verl, case), off(verl, case)
    release, resume = cache(verl)
    assert found["generate"] == plain["generate"] == serves(7)
    assert found["log"] == plain["log"] == [*PAUSED, *release, *GROUP, *FINALIZED, *resume, *RESUMED]
    assert found["trainer"] == plain["trainer"]
    assert found["states"] == ["serving"] * 2


@VERL
def test_what_update_weights_returns(verl: str) -> None:
    returned, plain = on(verl, "good")["returned"], off(verl, "good")["returned"]
    assert plain == ({"checkpoint_engine/flushes": 3.0} if verl in RETURNS_METRICS else None)
    ours = {name.removeprefix("weight_sync/"): value for name, value in returned.items() if "weight_sync" in name}
    assert {name: value for name, value in returned.items() if "weight_sync" not in name} == (plain or {})
    assert set(ours) - {"kv_freed_gib"} == set(STEPS)
    assert (ours["aborted_requests"], ours["retries"]) == (8.0, 0.0)  # two in each of four servers
    # verl 0.7.1's sleep says nothing, so there is no number rather than a zero
    assert ours.get("kv_freed_gib") == (None if verl == "0.7.1" else 4.0)
    assert ours["transfer_s"] >= 0.01


@VERL
def test_the_next_sync(verl: str) -> None:
    _, found = seen(verl)["plugin"]["again"]
    assert found["generate"] == serves(7)
    assert found["log"][: len(found["log"]) // 2] == found["log"][len(found["log"]) // 2 :]


@VERL
def test_a_broken_transfer_is_tried_again(verl: str) -> None:
    found = on(verl, "breaks_once")
    release, resume = cache(verl)
    assert found["generate"] == serves(7)
    attempt = [*GROUP, *FINALIZED]  # finalized by us the first time, by verl's body the second
    assert found["log"] == [*PAUSED, *release, *attempt, *attempt, *resume, *RESUMED]
    assert found["returned"]["weight_sync/retries"] == 1.0
    assert found["buffers"] == [False] * 5


@VERL
def test_a_transfer_that_always_breaks_is_an_error_that_names_the_replicas(verl: str) -> None:
    found = on(verl, "breaks_always")
    assert found["returned"].startswith(
        "WeightSyncError: verl-mtp-plugin: found replica 0, replica 1: transfer failed in attempt 2: RuntimeError: "
        "connection lost; expected every replica to receive all weights of one step. Given up: replica 0, replica 1."
    )
    assert found["states"] == ["bad"] * 2
    assert found["generate"] == HANG  # half-written weights are never served
    assert (found["kv_mapped"], found["buffers"]) == ([True] * 4, [False] * 5)


@VERL
def test_retries_from_the_jobs_config(verl: str) -> None:
    found = on(verl, "retries_from_the_job_config")
    assert (found["generate"], found["returned"]["weight_sync/retries"]) == (serves(7), 3.0)


@pytest.mark.parametrize("verl", RETURNS_METRICS)
def test_differences_are_not_sent_twice(verl: str) -> None:
    found = on(verl, "differences")
    assert found["trainer"].count("send test_differences") == 1
    assert found["states"] == ["bad"] * 2


@VERL
def test_one_server_that_refuses_changes_nothing(verl: str) -> None:
    found = on(verl, "refuses_to_pause")
    assert found["generate"] == serves(0)
    assert found["returned"].startswith("WeightSyncError: verl-mtp-plugin: found replica 1: pause failed")
    assert found["trainer"] == []
    assert found["states"] == ["serving"] * 2


@VERL
def test_a_replica_is_resumed_after_the_slowest_of_its_servers_was_paused(verl: str) -> None:
    found = on(verl, "one_server_refuses_while_another_is_slow")
    assert found["generate"] == serves(0)
    assert found["log"] == [*PAUSED, *RESUMED]


@VERL
def test_a_replica_without_its_cache_is_given_up_alone(verl: str) -> None:
    found = on(verl, "cannot_map_its_cache")
    assert found["generate"] == serves(7)[:2] + HANG[:2]
    assert found["states"] == ["serving", "bad"]
    assert "Given up: replica 1." in found["returned"]


# -- transfers that do not end -----------------------------------------------------------------------------------------


@VERL
def test_a_transfer_that_does_not_return_ends_at_the_limit(verl: str) -> None:
    found = on(verl, "stuck")
    assert "no answer after 0.5 s" in found["returned"]
    assert "finalize" not in found["trainer"]
    assert found["generate"] == HANG
    assert found["ticks"] >= 1  # the caller's event loop went on: verl's own body stops it


@VERL
def test_the_next_attempt_waits_for_workers_that_are_still_receiving(verl: str) -> None:
    found = on(verl, "breaks_while_another_goes_on")
    assert (found["overlapping"], found["generate"]) == (False, serves(7))
    assert found["returned"]["weight_sync/retries"] == 1.0


@VERL
def test_there_is_no_next_attempt_beside_a_worker_that_never_ends(verl: str) -> None:
    found = on(verl, "breaks_while_another_never_ends")
    assert "connection lost" in found["returned"]
    assert "finalize" not in found["trainer"]
    assert (found["kv_mapped"], found["states"]) == ([False] * 4, ["bad"] * 2)


@VERL
def test_cancelled_in_the_transfer_the_sync_ends_first(verl: str) -> None:
    found = on(verl, "cancelled")
    assert (found["returned"], found["generate"]) == ("CancelledError", serves(7))


# -- what is left alone ------------------------------------------------------------------------------------------------


@VERL
def test_without_free_cache_engine_the_cache_stays(verl: str) -> None:
    found = on(verl, "cache_stays")
    assert found["log"] == [*PAUSED, *GROUP, *FINALIZED, *RESUMED]
    assert found["generate"] == serves(7)


@VERL
def test_servers_that_have_cache_controls_are_asked_themselves(verl: str) -> None:
    found = on(verl, "servers_with_cache_controls")
    assert found["log"][2:4] == ["release_kv_cache"] * 2
    assert found["returned"]["weight_sync/kv_freed_gib"] == 4.0


@VERL
def test_requests_are_retracted_where_that_is_asked_for(verl: str) -> None:
    found = on(verl, "retracts")
    assert (found["generate"], found["returned"]["weight_sync/aborted_requests"]) == (serves(7), 0.0)
    assert found["log"][:2] == ["retract_all_requests"] * 2
    assert "abort_all_requests" not in found["log"]


@VERL
def test_servers_that_cannot_retract_say_so_and_serve_on(verl: str) -> None:
    found = on(verl, "cannot_retract")
    assert found["generate"] == serves(0)
    assert "UnsupportedError: verl-mtp-plugin: found sync_requests=retract" in found["returned"]
    assert set(found["log"]) == {"resume_generation"}


@VERL
def test_naive_is_verls(verl: str) -> None:
    found = on(verl, "naive")
    assert found["returned"] == ({} if verl in RETURNS_METRICS else None)
    assert [word.split()[0] for word in found["trainer"]] == ["send"]
    assert found["log"] == []


@VERL
@pytest.mark.parametrize("case", ["hybrid", "off_in_the_job_config", "without_mtp"])
def test_verls_own_behavior(verl: str, case: str) -> None:
    assert on(verl, case) == off(verl, "breaks_once")


@VERL
def test_a_job_without_mtp_does_not_notice_the_plugin(verl: str) -> None:
    """Same calls, same answer, and an option that nobody uses harms nothing."""
    assert on(verl, "without_mtp_good") == off(verl, "good")


@VERL
def test_reverted(verl: str) -> None:
    assert seen(verl)["reverted"] == off(verl, "breaks_once")


@VERL
def test_servers_that_cannot_be_paused_are_left_to_verl(verl: str) -> None:
    """verl's own replica then says that they have no such method; the git before 0.7.1 does not call it."""
    found = on(verl, "cannot_be_paused")
    assert found["returned"].startswith("AttributeError")
    assert found["trainer"] == []


@VERL
def test_a_manager_of_the_users_that_does_it_differently(verl: str) -> None:
    found = on(verl, "manager_of_the_users")
    assert (found["returned"], found["log"]) == ("mine 7", [])


# -- metrics -----------------------------------------------------------------------------------------------------------


@VERL
def test_the_metrics_reach_the_tracker_once(verl: str) -> None:
    found = on(verl, "metrics")
    (_, first), (_, second), (_, third), (_, fourth) = found["lines"]
    ours = {f"weight_sync/{name}" for name in STEPS}
    assert ours <= set(first)
    assert ours <= set(third)
    assert second == fourth == ["actor/loss"]
    assert found["data"] == {"actor/loss": 0.5}  # the trainer's dictionary is its own
    assert [step for step, _ in found["lines"]] == [1, 2, 3, 4]
