"""What a weight sync says of itself, and that it is said once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from verl_mtp_plugin.rollout import sync_metrics
from verl_mtp_plugin.rollout.failures import brief
from verl_mtp_plugin.rollout.replica import Paused, Released
from verl_mtp_plugin.rollout.report import SyncReport

GIB = 2**30


@pytest.fixture(autouse=True)
def nothing_pending() -> Iterator[None]:
    yield
    sync_metrics._pending.clear()


def test_sums_over_replicas() -> None:
    report = SyncReport(drain_s=0.5)
    report.add_aborted([Paused(3), Paused(None), Paused(4)])
    report.add_released([Released(GIB, 1.0), Released(2 * GIB, 1.5), Released(None, 0.0)], seconds=2.0)
    metrics = report.metrics()
    assert metrics["weight_sync/aborted_requests"] == 7.0
    assert metrics["weight_sync/kv_freed_gib"] == 3.0
    # 1.5 of the 2 s of the slowest replica were waiting until idle
    assert (metrics["weight_sync/drain_s"], metrics["weight_sync/kv_release_s"]) == (2.0, 0.5)


def test_what_nobody_reports_is_left_out() -> None:
    report = SyncReport()
    report.add_aborted([Paused(None)])
    report.add_released([Released(None)], seconds=0.1)
    assert set(report.metrics()) == {
        f"weight_sync/{name}" for name in ("pause_s", "drain_s", "kv_release_s", "transfer_s", "kv_resume_s", "retries")
    }


def test_a_drain_longer_than_its_call_is_not_believed() -> None:
    report = SyncReport()
    report.add_released([Released(None, 9.0)], seconds=2.0)
    assert (report.drain_s, report.kv_release_s) == (2.0, 0.0)


def logged(data: Any) -> Any:
    """What reaches the tracker."""
    return sync_metrics.log(lambda self, data, step: data, object(), data, step=1)


def test_verls_own_metrics_come_first_and_are_kept() -> None:
    upstream = {"checkpoint_engine/flushes": 3.0}
    returned = sync_metrics.hand_over(SyncReport(retries=1, upstream=upstream))
    assert returned == {**upstream, **SyncReport(retries=1).metrics()}
    assert upstream == {"checkpoint_engine/flushes": 3.0}
    assert sync_metrics.hand_over(SyncReport(upstream=None)) == SyncReport().metrics()


def test_a_trainer_that_took_the_metrics_logs_its_own_copy() -> None:
    taken = sync_metrics.hand_over(SyncReport(retries=1))
    assert logged({**taken, "weight_sync/retries": 5.0})["weight_sync/retries"] == 5.0
    assert logged({"a": 1}) == {"a": 1}


def test_the_metrics_of_the_last_sync_are_logged() -> None:
    sync_metrics.hand_over(SyncReport(retries=1, aborted_requests=4))
    sync_metrics.hand_over(SyncReport(retries=2))
    line = logged({"a": 1})
    assert (line["a"], line["weight_sync/retries"]) == (1, 2.0)
    assert "weight_sync/aborted_requests" not in line


def test_a_line_that_is_no_mapping_is_passed_on() -> None:
    sync_metrics.hand_over(SyncReport())
    assert logged("text") == "text"
    assert "weight_sync/retries" in logged({})


def test_errors_in_one_line() -> None:
    class Remote(Exception):
        """As Ray's: the traceback is its text, the error itself is its cause."""

        cause = ValueError("it is\n  too small\n")

    assert brief(Remote("Traceback (most recent call last):\n  ...")) == "ValueError: too small"
    assert brief(TimeoutError()) == "TimeoutError"
