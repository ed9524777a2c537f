"""SGLang is asked for nothing that it dies of, on verl's real server and SGLang's real rules; and it serves on.

The scheduler behind the server is SGLang's own without a model (:mod:`verl_mtp_plugin.testing.sglang_scheduler`).
"""

from __future__ import annotations

from typing import Any

import pytest

from verl_mtp_plugin import tested
from verl_mtp_plugin.rollout.sglang.drain import POLL_S
from verl_mtp_plugin.testing.sglang_scheduler import KV_CACHE_GB

from .conftest import StartHost
from .guards import LONG
from .host import Host
from .stacks import LATER, PINNED

STACKS = (*PINNED, *LATER)
DRAIN_S, CONTROL_S = 4.0, 1.5
LIMITS = {
    "VERL_MTP_PLUGIN_SYNC_DRAIN_TIMEOUT_S": str(DRAIN_S),
    "VERL_MTP_PLUGIN_SYNC_CONTROL_TIMEOUT_S": str(CONTROL_S),
}
#: What the stand-in generates with the weights it starts with.
TOKENS = [0, 1, 2, 3]
NOTHING: dict[str, object] = {"drain_s": 0.0, "freed_bytes": None, "released": []}


@pytest.fixture(scope="module", params=STACKS, ids=str)
def host(request: pytest.FixtureRequest, start_host: StartHost) -> Host:
    return start_host(request.param, "tests.rollout.guards", **LIMITS)


@pytest.mark.parametrize("names", [("release_kv_cache", "resume_kv_cache"), ("sleep", "wake_up")], ids="-".join)
def test_what_is_released_is_resumed_once(host: Host, names: tuple[str, str]) -> None:
    outcome = host.play("release_and_resume", names=names)
    drain_s = outcome["released"].pop("drain_s")
    assert drain_s >= 0
    assert outcome["released"] == {"freed_bytes": KV_CACHE_GB * 2**30, "released": ["kv_cache"]}
    assert outcome["status"] == {"paused": True, "released": ["kv_cache"], "in_flight": 0, "global_steps": None}
    assert outcome["again"] == NOTHING
    assert outcome["resumed"] == {"resumed": ["kv_cache"]}
    assert outcome["saver"] == [["pause", "kv_cache"], ["resume", "kv_cache"]]
    assert outcome["tokens"] == TOKENS


def test_a_resume_of_nothing_is_a_warning(host: Host) -> None:
    outcome = host.play("nothing_released")
    assert outcome["resumed"] == [{"resumed": []}] * 2
    assert outcome["messages"] == 0
    assert outcome["warned"] == 2
    assert outcome["tokens"] == TOKENS


def test_wake_up_resumes_nothing_where_the_cache_is_kept(host: Host) -> None:
    outcome = host.play("kept_cache")
    assert outcome == {"released": NOTHING, "resumed": {"resumed": []}, "messages": 0, "death": ""}


def test_wake_up_resumes_what_was_released_with_an_adapter(host: Host) -> None:
    outcome = host.play("adapter")
    tags = ["kv_cache", "weights"] if host.stack.verl == "0.7.1" else ["kv_cache"]  # which has no adapters
    assert outcome["released"]["released"] == tags
    assert outcome["resumed"] == {"resumed": tags}
    assert outcome["left"] == []
    assert outcome["death"] == ""


def test_servers_of_other_nodes_do_nothing(host: Host) -> None:
    assert host.play("second_node") == {
        "abort_all_requests": {"aborted": 0},
        "release_kv_cache": NOTHING,
        "resume_kv_cache": {"resumed": []},
        "resume_generation": None,
        "mtp_status": {"paused": False, "released": [], "in_flight": 0, "global_steps": None},
    }


def test_a_release_waits_for_requests_and_holds_back_new_ones(host: Host) -> None:
    outcome = host.play("busy_release")
    assert outcome["running"] == LONG
    assert outcome["drain_s"] >= POLL_S  # it was not idle at first
    assert outcome["served_without_cache"] == [False] * 4
    assert outcome["resumed"] == {"resumed": ["kv_cache"]}
    assert outcome["tokens"] == [4] * 4
    assert outcome["death"] == ""


def test_a_release_waits_for_a_late_result(host: Host) -> None:
    outcome = host.play("late_result", seconds=0.5)
    assert outcome["released"]["released"] == ["kv_cache"]
    assert outcome["released"]["drain_s"] >= POLL_S
    assert outcome["death"] == ""


def test_a_release_waits_for_every_data_parallel_rank(host: Host) -> None:
    outcome = host.play("second_rank_busy", seconds=0.5)
    assert outcome["released"]["released"] == ["kv_cache"]
    assert 0.4 <= outcome["released"]["drain_s"] < DRAIN_S
    assert outcome["death"] == ""


@pytest.mark.parametrize("mtp", [True, False])
def test_weights_and_a_pause_do_not_wait_for_each_other(host: Host, mtp: bool) -> None:
    outcome = host.play("paused_during_weights", mtp=mtp)
    assert (outcome["weights"], outcome["pause"]) == (True, True)
    assert outcome["tokens"] > 0


def test_an_engine_that_is_never_idle_is_an_error_and_serves(host: Host) -> None:
    outcome = host.play("never_idle")
    assert outcome["error"].startswith("WeightSyncError: verl-mtp-plugin: found an engine still busy after")
    assert "sync_drain_timeout_s" in outcome["error"]
    assert outcome["seconds"] >= DRAIN_S
    assert outcome["messages"] == 0
    assert outcome["status"] == {"paused": False, "released": [], "in_flight": 0, "global_steps": None}
    assert outcome["tokens"] == TOKENS


@pytest.mark.parametrize("scenario", ["abort", "as_in_git"])
def test_abort_counts_and_holds_back_new_requests(host: Host, scenario: str) -> None:
    outcome = host.play(scenario)
    assert outcome["answers"] == [{"aborted": 3}, {"aborted": 0}]
    assert outcome["ended_early"] == [True] * 3
    assert outcome["held"]
    assert outcome["late"] == TOKENS


def test_an_abort_that_never_ends_is_an_error_and_serves(host: Host) -> None:
    outcome = host.play("deaf_abort")
    assert outcome["error"].startswith("WeightSyncError: verl-mtp-plugin: found 1 of 1 requests still in flight")
    assert outcome["status"]["paused"] is False
    assert outcome["tokens"] == TOKENS
    assert outcome["running"] == 6 * LONG


def test_a_release_without_an_answer_counts_as_done(host: Host) -> None:
    outcome = host.play("unanswered_release")
    first, second = outcome["errors"]
    assert "no answer from SGLang to release within 5.5 s" in first
    assert "no answer from SGLang to the release before this resume within 1.5 s" in second
    assert outcome["status"]["released"] == ["kv_cache"]
    assert outcome["status"]["paused"] is True
    assert outcome["resume"] == ""
    assert outcome["then"]["paused"] is True


def test_generation_is_resumed_when_the_cache_is_back(host: Host) -> None:
    outcome = host.play("generation_without_cache")
    assert outcome["refused"] == ""
    assert outcome["paused"] == [True, False]
    assert not outcome["served"]
    assert outcome["tokens"] == TOKENS


def test_the_http_route_has_the_same_guards(host: Host) -> None:
    outcome = host.play("over_http")
    assert outcome["codes"] == [200] * 4
    order = [["pause", "kv_cache"], ["pause", "weights"], ["resume", "weights"], ["resume", "kv_cache"]]
    assert outcome["saver"] == order
    assert outcome["tokens"] == TOKENS
    assert outcome["death"] == ""


def test_requests_are_retracted_and_continue_where_sglang_can(host: Host) -> None:
    outcome = host.play("retract")
    assert outcome["tokens"] == list(range(LONG))
    assert outcome["death"] == ""
    if host.stack.sglang == "0.5.6":
        assert outcome["error"].startswith("UnsupportedError: verl-mtp-plugin: found sync_requests=retract, but")
        assert outcome["status"]["paused"] is False
    else:
        assert outcome["error"] == ""


# -- what the guards are for ----------------------------------------------------------------------------------------


def test_without_the_plugin_wake_up_ends_the_scheduler(host: Host) -> None:
    outcome = host.play("as_released", scenario="kept_cache")
    assert outcome["resumed"] == "no answer"
    assert outcome["death"] == "KeyError: 'kv_cache'"


def test_without_the_plugin_an_adapter_ends_the_scheduler(host: Host) -> None:
    outcome = host.play("as_released", scenario="adapter")
    ends = host.stack.verl in ("0.8.0", "0.9.0")
    assert outcome["death"] == ("KeyError: 'weights'" if ends else "")


def test_without_the_plugin_a_late_result_ends_the_scheduler(host: Host) -> None:
    outcome = host.play("as_released", scenario="late_result", seconds=0.5)
    assert outcome["released"] == "no answer"
    assert outcome["death"].startswith("AssertionError: release_memory_occupation should be called only when")


def test_the_stacks_are_those_of_the_layers() -> None:
    pins = [f"verl-{verl}_sglang-{sglang}" for verl, sglang in tested.SGLANG_PINS.items()]
    later = [f"verl-{tested.VERL[-1]}_sglang-{sglang}" for sglang in (tested.SGLANG_SESSIONS, tested.SGLANG[-1])]
    assert [str(stack) for stack in STACKS] == [*pins, *later]


# -- what is refused before a server starts ---------------------------------------------------------------------------

REPLAY: dict[str, Any] = {"enable_rollout_routing_replay": True}
#: SGLang 0.5.6 itself, of verl's argument for router replay.
RECORDS_NOTHING = "TypeError: ServerArgs.__init__() got an unexpected keyword argument 'enable_return_routed_experts'"


@pytest.mark.parametrize("engine", [{"pp_size": 2}, REPLAY], ids=lambda engine: next(iter(engine)))
def test_a_server_that_cannot_retract_is_refused_before_it_starts(host: Host, engine: dict[str, Any]) -> None:
    options = engine if engine is REPLAY else {"sglang": engine}
    outcome = host.play("launched", requests="retract", **options)
    assert outcome["started"] == 0
    if engine is REPLAY and host.stack.sglang == "0.5.6":
        assert outcome["error"] == RECORDS_NOTHING
    else:
        assert outcome["error"].startswith("UnsupportedError: verl-mtp-plugin: found sync_requests=retract, but ")


def test_nothing_is_refused_where_the_plugin_is_off(host: Host) -> None:
    outcome = host.play("launched", requests="retract", mode="off", sglang={"enable_return_hidden_states": True})
    if host.stack in LATER:  # of which verl as released starts no server
        assert outcome["error"].startswith("TypeError: must be called with a dataclass type")
    else:
        assert outcome == {"error": "", "started": 1}


def test_nothing_is_refused_where_the_job_has_no_mtp(host: Host) -> None:
    """The option may stand in the environment of every job of a lab."""
    engine = {"enable_return_hidden_states": True}
    outcome = host.play("launched", requests="retract", job_has_mtp=False, sglang=engine)
    assert outcome == {"error": "", "started": 1}


def test_a_server_that_can_is_not(host: Host) -> None:
    outcome = host.play("launched", requests="retract")
    refused = host.stack.sglang == "0.5.6"
    assert outcome["started"] == (0 if refused else 1)
    assert outcome["error"].startswith("UnsupportedError" if refused else "")


@pytest.mark.parametrize("options", [{}, {"mtp": {}}, REPLAY, {**REPLAY, "mtp": {}}], ids="-".join)
def test_nobody_else_is_refused(host: Host, options: dict[str, Any]) -> None:
    """Router replay, MTP, and both: the drafter is kept out of what SGLang records."""
    outcome = host.play("launched", **options)
    if "enable_rollout_routing_replay" in options and host.stack.sglang == "0.5.6":
        assert outcome == {"error": RECORDS_NOTHING, "started": 0}
    else:
        assert outcome == {"error": "", "started": 1}


@pytest.mark.parametrize("what", [{"sampling": {"presence_penalty": 0.5}}, {"engine": {"pp_size": 2}}], ids=str)
def test_a_request_that_would_lose_something_is_not_retracted(host: Host, what: dict[str, Any]) -> None:
    outcome = host.play("retract_refused", **what)
    assert outcome["error"].startswith("UnsupportedError: verl-mtp-plugin: found sync_requests=retract, but ")
    assert outcome["paused"] is False
    assert outcome["tokens"] == LONG


def test_requests_are_retracted_beside_one_in_the_grammar_queue(host: Host) -> None:
    outcome = host.play("retract_beside_grammar")
    refused = host.stack.sglang == "0.5.6"
    assert outcome["error"].startswith("UnsupportedError" if refused else "")
    assert bool(outcome["error"]) is refused
    assert outcome["kept"]
    assert outcome["tokens"] == LONG
