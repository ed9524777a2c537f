"""Counts from what SGLang reports, and the metrics made of them. The ``meta_info`` is SGLang's own."""

from __future__ import annotations

import pytest

from verl_mtp_plugin.rollout import acceptance
from verl_mtp_plugin.rollout.acceptance import Counts

from .processes import PAIRS, server
from .scenario import DRAFTS_PER_STEP, FIELDS, LENGTH, LONG, RATE, expected

COUNTS = Counts(LONG.verify * DRAFTS_PER_STEP, LONG.accepted, LONG.verify)


@pytest.mark.parametrize(("verl", "sglang"), PAIRS)
def test_counts_under_the_names_of_each_release(verl: str, sglang: str) -> None:
    meta_info = server(verl, sglang)["meta_info"]
    assert acceptance.of_meta_info(meta_info) == COUNTS
    # The next renaming: what has had one name in all releases is enough, if the drafts of a step are known.
    stable = {name: meta_info[name] for name in ("spec_accept_rate", "spec_accept_length", "spec_verify_ct")}
    assert acceptance.of_meta_info(stable, DRAFTS_PER_STEP) == COUNTS
    assert acceptance.of_meta_info(stable) is None


@pytest.mark.parametrize(
    "meta_info",
    [
        {},
        {"spec_accept_rate": 0.0, "spec_accept_length": 0, "spec_verify_ct": 0},  # 0.5.6, aborted while it waited
        {"spec_verify_ct": None},
        {"spec_num_proposed_drafts": 6, "spec_num_correct_drafts": 2},
    ],
)
def test_nothing_reported_is_nothing(meta_info: dict[str, object]) -> None:
    assert acceptance.of_meta_info(meta_info, DRAFTS_PER_STEP) is None


def test_metrics_are_quotients_of_sums() -> None:
    numbers = [(600, 528, 200), (12, 3, 4), (6, 0, 2), (0, 0, 0), (None, None, None)]
    counts = acceptance.total(zip(*numbers))
    assert acceptance.metrics(counts) == pytest.approx(expected())
    assert acceptance.metrics(counts) == {RATE: 531 / 618, LENGTH: 1 + 531 / 206}


def test_padding_is_left_out() -> None:
    columns = [[3, 300], [1, 300], [1, 100]]
    assert acceptance.total(columns, [True, False]) == Counts(3, 1, 1)
    assert acceptance.total(columns, [False, False]) == acceptance.NOTHING
    with pytest.raises(ValueError, match="shorter"):
        acceptance.total(columns, [True])


@pytest.mark.parametrize("counts", [acceptance.NOTHING, Counts(proposed=4)])  # the latter is verl 0.9's invention
def test_without_a_verify_step_there_is_no_metric(counts: Counts) -> None:
    assert acceptance.metrics(counts) == {}


def test_fields_are_verls() -> None:
    fields: dict[str, object] = {"global_steps": 3}
    assert acceptance.of_fields(fields) is acceptance.of_fields(None) is None
    acceptance.write(fields, COUNTS)
    assert fields == {"global_steps": 3, **LONG.fields}
    assert acceptance.of_fields(fields) == COUNTS
    acceptance.write(fields, None)
    assert acceptance.of_fields(fields) == acceptance.NOTHING
    assert acceptance.FIELDS == FIELDS
