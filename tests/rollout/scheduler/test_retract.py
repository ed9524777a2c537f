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


def test_a_scheduler_without_pauses_is_refused() -> None:
    assert can_retract(object) == "SGLang's Scheduler has no pause_generation"
