"""Requests that were retracted wait without a row of the KV cache: it may be flushed and released."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from verl_mtp_plugin.rollout.sglang.scheduler import can_retract, is_fully_idle

from .releases import SGLANG
from .test_routes import of

#: The scheduler counts waiting requests in when it asks whether it is idle.
COUNTING = ("0.5.12.post1", "0.5.20")
#: It has a flush that waits for an idle engine.
DEFERRING = (*COUNTING, "0.5.21", "0.5.22", "0.5.23")


@pytest.mark.parametrize("release", [release for release in SGLANG if release in COUNTING])
def test_without_the_patch_a_release_ends_the_scheduler(release: str) -> None:
    found = of(release)["bare"]
    assert found["after_retract"]["release"]["result"].startswith("AssertionError: release_memory_occupation")
    assert found["after_retract"]["flush"]["result"] is False
    assert "0.5.10 to 0.5.20" in found["can_retract"]


@pytest.mark.parametrize("release", SGLANG)
def test_with_the_patch_it_is_flushed_and_released(release: str) -> None:
    for kind, outcome in of(release)["patched"]["after_retract"].items():
        assert outcome["waiting"] == ["2", "0", "1"], kind  # all three are there, and none twice
        assert outcome["kept"], kind
    results = {kind: outcome["result"] for kind, outcome in of(release)["patched"]["after_retract"].items()}
    assert (results["flush"], results["release"]) == (True, ["kv_cache"])
    assert (results["grammar"], results["grammar_release"]) == (True, ["kv_cache"])


@pytest.mark.parametrize("release", [release for release in SGLANG if release in DEFERRING])
def test_without_the_patch_a_request_in_the_grammar_queue_ends_the_scheduler(release: str) -> None:
    """Also from 0.5.21 on, where SGLang leaves out what waits, and not this queue."""
    found = of(release)["bare"]["after_retract"]
    assert found["grammar"]["result"] is False
    assert found["grammar_release"]["result"].startswith("AssertionError: release_memory_occupation")


@pytest.mark.parametrize("release", [release for release in SGLANG if release in DEFERRING])
def test_a_flush_that_waits_need_not(release: str) -> None:
    """Also from 0.5.21 on, where SGLang's other questions leave waiting requests out and this one does not."""
    assert of(release)["bare"]["after_retract"]["deferred_flush"]["result"] == "waits"
    assert of(release)["patched"]["after_retract"]["deferred_flush"]["result"] is True


@pytest.mark.parametrize("release", [release for release in SGLANG if release in COUNTING])
def test_a_request_that_holds_a_row_is_counted(release: str) -> None:
    assert of(release)["patched"]["after_retract"]["holding"]["result"] is False


@pytest.mark.parametrize("release", SGLANG)
def test_what_waits_in_an_engine_that_is_not_paused_is_counted_as_before(release: str) -> None:
    bare, patched = (of(release)[mode]["idle_with_a_request_waiting"] for mode in ("bare", "patched"))
    assert bare is patched
    assert bare is (release not in DEFERRING)


def test_the_oldest_release_loses_what_was_just_prefilled_and_is_refused() -> None:
    found = of("0.5.6")["patched"]
    assert found["prefilled"]["overlap"] == {"waiting": ["0", "1", "2"], "idle": True}  # 3 is gone
    assert found["prefilled"]["normal"] == {"waiting": ["0", "1", "2"], "idle": False}  # and is never idle
    assert found["can_retract"].startswith("SGLang's Scheduler.pause_generation does not look at a batch")


@pytest.mark.parametrize("release", [release for release in SGLANG if release != "0.5.6"])
def test_all_others_may_retract(release: str) -> None:
    found = of(release)["patched"]
    assert found["can_retract"] is None
    for mode in ("overlap", "normal"):
        assert found["prefilled"][mode] == {"waiting": ["0", "1", "2", "3"], "idle": True}


#: Why an engine cannot be asked to retract, by what is special about it; a part of the reason.
REASONS = {
    "plain": None,
    "data parallel": None,
    "pipeline": "event_loop_pp, in which this engine runs (pp_size > 1), goes on while the engine is paused",
    "pdmux": "event_loop_pdmux, in which this engine runs (enable_pdmux), goes on while the engine is paused",
    "prefill server": "servers of their own (disaggregation_mode=prefill)",
    "decode server": "servers of their own (disaggregation_mode=decode)",
    "local control": "(enable_dp_attention_local_control_broadcast)",
    "routed experts": "(enable_return_routed_experts)",
    "indexer": "(enable_return_indexer_topk)",
    "hidden states": "(enable_return_hidden_states)",
    "hierarchical cache": "(enable_hierarchical_cache)",
    "sparse cache": "(enable_hisparse)",
    "diffusion": "(dllm_algorithm)",
}
#: Reasons that are none where SGLang does not wait for it.
NOT_WAITED_FOR = {"0.5.8": ("hierarchical cache", "sparse cache", "diffusion")}


@pytest.mark.parametrize("engine", REASONS)
@pytest.mark.parametrize("release", [release for release in SGLANG if release != "0.5.6"])
def test_every_reason_that_lies_in_the_engine_is_known_and_named(release: str, engine: str) -> None:
    reason, expected = of(release)["patched"]["refused"][engine], REASONS[engine]
    if expected is None or engine in NOT_WAITED_FOR.get(release, ()):
        assert reason is None
    else:
        assert expected in reason


def test_the_reasons_are_those_of_the_engines() -> None:
    assert set(REASONS) == set(of("0.5.8")["patched"]["refused"])


@pytest.mark.parametrize("release", SGLANG)
def test_a_loop_that_ignores_the_pause_runs_no_retracted_request(release: str) -> None:
    assert of(release)["bare"]["paused_loop"]["event_loop_pp"] == "Scheduled: 3 requests wait"
    for loop, outcome in of(release)["patched"]["paused_loop"].items():
        assert outcome.startswith("UnsupportedError"), loop
        assert f"{loop} goes on while the engine is paused" in outcome


@pytest.mark.parametrize("release", SGLANG)
def test_what_a_request_would_lose_is_known_and_named(release: str) -> None:
    found = dict(of(release)["patched"]["lost_with"])
    assert [found.pop(kind) for kind in ("plain", "log-probs", "as verl's")] == [None] * 3
    assert "input_embeds" in found.pop("embeds")
    named = {"frequency": "frequency_penalty", "presence": "presence_penalty", "minimum": "min_new_tokens"}
    if "repetition_penalty" in of(release)["patched"]["penalties"]:
        named["repetition"] = "repetition_penalty"
    else:
        assert found.pop("repetition") is None  # this SGLang does not heed it
    assert set(found) == set(named)
    for kind, parameter in named.items():
        assert parameter in found[kind]


@pytest.mark.parametrize("release", SGLANG)
def test_sglang_forgets_what_a_penalty_has_counted(release: str) -> None:
    """The reason for the refusal: a batch that is made anew knows nothing of tokens that were generated before."""
    penalties = of(release)["bare"]["penalties"]
    assert {"frequency_penalty", "presence_penalty"} <= set(penalties)
    assert not any(penalties.values())


def paused(**values: Any) -> Any:
    request = SimpleNamespace(req_pool_idx=None)
    return SimpleNamespace(**{"_engine_paused": True, "waiting_queue": [request], **values})


def waits(self: Any, for_health_check: bool = False, ignore_waiting: bool = False) -> bool:
    return not self.waiting_queue


def test_questions_that_say_how_they_are_meant_are_passed_on() -> None:
    assert is_fully_idle(waits, paused())
    assert not is_fully_idle(waits, paused(), for_health_check=True)
    assert not is_fully_idle(waits, paused(), True)
    assert not is_fully_idle(waits, paused(), ignore_waiting=True)
    assert is_fully_idle(waits, paused(), ignore_waiting=False)
    assert not is_fully_idle(waits, paused(_engine_paused=False))


def test_the_queue_comes_back_when_the_question_fails() -> None:
    def fails(self: Any) -> bool:
        raise RuntimeError

    scheduler = paused()
    waiting = scheduler.waiting_queue
    with pytest.raises(RuntimeError):
        is_fully_idle(fails, scheduler)
    assert scheduler.waiting_queue is waiting


def test_a_request_in_the_grammar_queue_that_holds_a_row_is_counted() -> None:
    def nothing_compiles(self: Any) -> bool:
        return not self.grammar_manager.grammar_queue

    for row, idle in ((None, True), (3, False)):
        queue = [SimpleNamespace(req_pool_idx=row)]
        scheduler = paused(grammar_manager=SimpleNamespace(grammar_queue=queue))
        assert is_fully_idle(nothing_compiles, scheduler) is idle
        assert scheduler.grammar_manager.grammar_queue is queue


def test_a_scheduler_without_pauses_is_refused() -> None:
    assert can_retract(object) == "SGLang's Scheduler has no pause_generation"
