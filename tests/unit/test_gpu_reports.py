"""What the GPU benchmarks' pages say of numbers that are made up here."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gpu.rollout_speed import __main__ as rollout_speed
from benchmarks.gpu.rollout_speed import report
from benchmarks.gpu.upstream import cells, fully_async, sections, summary


def test_a_verify_step_yields_the_accepted_drafts_and_one_token_more() -> None:
    assert rollout_speed.accept_length(0.0) == 1
    assert rollout_speed.accept_length(0.5, drafts=2) == 2
    assert rollout_speed.accept_length(1.0, drafts=3) == 4


def test_gains_are_of_medians_over_the_same_number_of_requests() -> None:
    def rounds(*speeds: float) -> list[dict[str, float]]:
        return [{"tokens_per_s": speed} for speed in speeds]

    document = {
        "hardware": {"gpus": ["H200, 1 MiB"]}, "versions": dict.fromkeys(("sglang", "torch", "flashinfer-python"), "1"),
        "drafts": 3, "prompt_tokens": 64, "new_tokens": 256, "rates": {
            "none": {"batches": {"8": rounds(90, 100, 900), "32": rounds(400)}},
            "0.44": {"batches": {"8": rounds(150), "32": rounds(300)}},
            "0.54": {"batches": {"8": rounds(180), "32": rounds(330)}},
            "0.7": {"error": "no time left"},
        },
    }  # fmt: skip
    text = report.render(document)
    assert "| 8 | 100 | 150 (+50%) | 180 (+80%) |" in text
    assert "| 32 | 400 | 300 (-25%) | 330 (-18%) |" in text
    assert "From 44% to 54%: +20% at 8, +10% at 32 requests" in text


def variant(**more: Any) -> dict[str, Any]:
    steps = {
        "step": [0.0, 1.0, 2.0, 3.0],
        "timing_s/step": [None, 9.0, 2.0, 4.0],
        "actor/grad_norm": [None, 1.0, 2.0, 3.0],
    }
    return {
        "status": 0, "timed_out": False, "wall_s": 1.0, "startup_s": {}, "steps": steps, "decode": {},
        "peak_mib": {"0": 5, "1": 7}, "lines_left_out_of_the_script": [], **more,
    }  # fmt: skip


def test_runs_that_shared_their_gpus_tell_no_times() -> None:
    alone, shared = summary.of(variant()), summary.of(variant(shared_gpus=True))
    assert (alone["step_s"], alone["peak_mib"]) == (3.0, 7)  # the first step warms up
    assert (shared["step_s"], shared["peak_mib"]) == (None, None)
    assert alone["grad_norm"] == shared["grad_norm"] == 2.5


@pytest.mark.parametrize(
    ("status", "timed_out", "said"), [(0, False, "3"), (1, False, "3, then failed"), (-9, True, "3, then cut off")]
)
def test_steps_say_how_a_run_ended(status: int, timed_out: bool, said: str) -> None:
    """The entry before the first step, of the first weight sync, is none."""
    assert cells.steps(summary.of(variant(status=status, timed_out=timed_out))) == said


def test_banners_are_told_as_one() -> None:
    lines = {
        "verl-mtp-plugin 0.1.0 (auto) applied: one, two; armed: three": 2,
        "verl-mtp-plugin 0.1.0 (auto) applied: two, three; armed: 41": 1,
        "verl-mtp-plugin 0.1.0 (auto) applied: two, three; armed: 40": 1,
        "verl-mtp-plugin: taken as False": 1,
    }
    told = sections.said({"variants": {"plugin": {"plugin_said": lines}}})
    assert told[2:-1] == ["- `verl-mtp-plugin: taken as False`", "- in 4 banners, as applied: one, two, three"]
    assert sections.said({"variants": {"released": {}}}) == []


def test_a_heading_says_how_to_run_it_again() -> None:
    sizes = {"steps": 12, "learning_rate": 1e-5, "tensor_parallel": 2}
    variants = {"plugin": variant(sizes=sizes, gpus=4, shared_gpus=True)}
    command = sections.again(variants, fully_async, fully_async.Sizes(learning_rate=1e-5))
    assert command == (
        "python -m benchmarks.gpu.upstream.fully_async --model MODEL --data DATA --examples VERL --gpus 0,1,2,3 "
        "--gpus-each 4 --variants plugin --steps 12 --tensor-parallel 2 --shared"
    )
