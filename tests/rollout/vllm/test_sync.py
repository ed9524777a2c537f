"""verl's vLLM server through a weight sync, in each verl: the KV cache goes and comes, weights stay, nobody is lost.

Real: verl's ``vLLMHttpServer``. The engine stands in, with the rules of the vLLM that the test is named after.
"""

from __future__ import annotations

from typing import Any

import pytest

from .core import GARBAGE, SIZES
from .processes import PAIRS, cases

OLD, NEW = {"target": 1, "drafter": 1}, {"target": 2, "drafter": 1}
ALONE = PAIRS[-1]  # a release of the KV cache alone


def released(verl: str, vllm: str) -> list[str]:
    return ["release_kv_cache_memory"] if (verl, vllm) == ALONE else ["sleep 1", "wake_up weights"]


def patched(verl: str, vllm: str, case: str) -> Any:
    return cases(verl, vllm)["patched"][case]


def bare(verl: str, vllm: str, case: str) -> Any:
    return cases(verl, vllm)["bare"][case]


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_the_cache_is_released_and_the_weights_stay(verl: str, vllm: str) -> None:
    found = patched(verl, vllm, "sync")
    assert found["pause"]["aborted"] == 2
    assert [request["reason"] for request in found["running"]] == ["aborted"] * 2
    assert found["released"] == {"asleep": ["kv_cache"], "weights": OLD, "calls": released(verl, vllm), "dead": ""}
    assert found["release"].pop("drain_s") < 1
    assert found["release"] == {"freed_bytes": SIZES["kv_cache"], "released": ["kv_cache"]}
    assert found["resume"] == {"resumed": ["kv_cache"]}
    assert (found["resumed"]["asleep"], found["resumed"]["dead"]) == ([], "")
    assert found["after"]["made_by"] == [NEW["target"]]


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_a_request_that_comes_meanwhile_waits_for_whole_weights(verl: str, vllm: str) -> None:
    found = patched(verl, vllm, "sync")
    assert found["late_waits"]
    assert (found["late"]["reason"], found["late"]["made_by"]) == ("completed", [NEW["target"]])


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_a_sync_that_fails_leaves_the_old_weights(verl: str, vllm: str) -> None:
    found = patched(verl, vllm, "failed_sync")
    assert found["released"]["weights"] == OLD
    assert found["after"]["made_by"] == [OLD["target"]]


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_requests_on_their_way_are_aborted_before_memory_goes(verl: str, vllm: str) -> None:
    found = patched(verl, vllm, "on_their_way")
    assert found["released"] == {"asleep": ["kv_cache"], "weights": OLD, "calls": released(verl, vllm), "dead": ""}
    assert [request["reason"] for request in found["early"]] == ["aborted"] * 3


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_steps_out_of_order(verl: str, vllm: str) -> None:
    found = patched(verl, vllm, "guards")
    assert "asked to release its KV cache while it serves; expected abort_all" in found["release_while_serving"]
    assert found["resume_nothing"] == {"resumed": []}
    assert found["untouched"] == {"asleep": [], "weights": OLD, "calls": [], "dead": ""}
    assert found["serves"]["reason"] == "completed"
    assert found["serve_asleep"] is None  # it serves when its cache is back
    assert [answer["released"] for answer in found["release"]] == [["kv_cache"]] * 2
    assert found["resume"] == [{"resumed": ["kv_cache"]}, {"resumed": []}]
    # A second release asks the engine for nothing, and a sync after a failed one for all.
    assert found["memory"]["calls"] == [*released(verl, vllm), "wake_up kv_cache"] * 2
    assert found["after"]["made_by"] == [OLD["target"]]


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_failures_are_errors_and_the_server_comes_back(verl: str, vllm: str) -> None:
    found = patched(verl, vllm, "failures")
    assert found["pause"].startswith("WeightSyncError: verl-mtp-plugin: found replica 0, which could not be paused: ")
    assert "with requests still running 0.5 s after it was paused" in found["stuck"]
    assert found["stuck_memory"] == {"asleep": [], "weights": OLD, "calls": [], "dead": ""}
    assert found["wake_memory"]["asleep"] == []
    for name in ("stuck_after", "wake_after"):
        assert (found[name]["reason"], found[name]["made_by"]) == ("completed", [OLD["target"]])
    if (verl, vllm) != ALONE:  # weights and cache were asleep, and both were woken up
        assert "whose vLLM failed in kv_release: RuntimeError: the engine said no" in found["wake"]
        assert found["wake_resume"] == {"resumed": ["weights", "kv_cache"]}
    aborted, *others = found["further_node"]
    assert (aborted, others) == (
        {"aborted": 0, "aborted_count": 0, "request_ids": []},
        [{"drain_s": 0.0, "freed_bytes": None, "released": []}, {"resumed": []}, None],
    )


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_servers_whose_cache_is_not_ours_to_release(verl: str, vllm: str) -> None:
    for name, found in patched(verl, vllm, "left_alone").items():
        assert (found["calls"], found["after"]["reason"]) == ([], "completed"), name


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_a_hybrid_server_that_drafts_keeps_its_weights_asleep(verl: str, vllm: str) -> None:
    found = patched(verl, vllm, "hybrid_sleep")
    assert (found["drafting"]["weights"], found["drafting"]["calls"]) == (OLD, ["sleep 1", "wake_up weights"])
    assert found["plain"] == bare(verl, vllm, "hybrid_sleep")["plain"]
    assert found["plain"]["calls"][0] == "sleep 2"


def test_what_is_patched_is_what_lacks_it() -> None:
    late = {}
    for pair in PAIRS:
        decisions = {name.partition("vllm.")[2]: made for name, made in cases(*pair)["decisions"].items()}
        late[pair] = {name for name, made in decisions.items() if made != "applied"}
        assert set(decisions.values()) <= {"applied", "not_needed"}
    own_door = {"resume_generation", "sleep_level"}
    assert late == {
        PAIRS[0]: {"resume_engine_generation", "pause_generation"},
        PAIRS[1]: {"resume_engine_generation", "pause_generation"},
        PAIRS[2]: {"resume_engine_generation", "pause_generation", "sleep_level"},
        PAIRS[3]: {"pause_generation", *own_door},
        PAIRS[4]: own_door,
    }


# -- as released -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verl", "vllm"), PAIRS[:3])
def test_as_released_the_cache_stays(verl: str, vllm: str) -> None:
    assert bare(verl, vllm, "sync")["released"]["asleep"] == []


@pytest.mark.parametrize(("verl", "vllm"), PAIRS[3:])
def test_as_released_verl_0_9_1_serves_garbage_after_a_failed_sync(verl: str, vllm: str) -> None:
    found = bare(verl, vllm, "failed_sync")
    assert (found["released"]["weights"], found["after"]["made_by"]) == (dict.fromkeys(OLD, GARBAGE), [GARBAGE])
    failed = bare(verl, vllm, "failures")
    assert failed["stuck_after"] == {"error": "RuntimeError: CUDA error: an illegal memory access (kv_cache)"}
    assert failed["wake_after"] == {"error": "RuntimeError: CUDA error: an illegal memory access (weights)"}


@pytest.mark.parametrize(("verl", "vllm"), PAIRS[:3])
def test_as_released_a_server_that_was_not_paused_is_none_to_worry_about(verl: str, vllm: str) -> None:
    assert bare(verl, vllm, "failures")["pause"] == {
        "aborted_count": 0,
        "request_ids": [],
        "error": "the engine said no",
    }


@pytest.mark.parametrize(("verl", "vllm"), PAIRS[:2])
def test_as_released_requests_on_their_way_run_while_the_server_is_paused(verl: str, vllm: str) -> None:
    core = bare(verl, vllm, "on_their_way")
    assert [request.get("reason", "error") for request in core["early"]] != ["aborted"] * 3


@pytest.mark.parametrize(("verl", "vllm"), PAIRS[:2])
def test_as_released_a_hybrid_server_loses_its_drafter(verl: str, vllm: str) -> None:
    assert bare(verl, vllm, "hybrid_sleep")["drafting"]["weights"] == dict.fromkeys(OLD, GARBAGE)


def test_as_released_verl_0_9_1_cannot_pause_the_newest_vllm() -> None:
    assert "unexpected keyword argument 'wait_for_inflight_requests'" in bare(*ALONE, "sync")["pause"]
