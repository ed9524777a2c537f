"""The metrics of a step: from the samples that verl's server made (see test_server) through verl's own trainers."""

from __future__ import annotations

from typing import Any

import pytest

from .processes import PAIRS, server, trainer
from .scenario import ABORTED, FIELDS, LONG, RATE, SHORT, expected, mean_of_ratios

VERSIONS = tuple(dict.fromkeys(verl for verl, _ in PAIRS))
NEW = VERSIONS[1:]
GLOBAL_STEPS: dict[str, Any] = {"global_steps": 1}


def made_by_server(verl: str) -> list[dict[str, Any]]:
    """``extra_fields`` of a step, from verl's server with the SGLang that it pins."""
    sglang = dict(reversed(PAIRS))[verl]
    return [answer["fields"] for answer in server(verl, sglang)["patched"].values()]


def steps(verl: str) -> list[list[dict[str, Any]]]:
    """A whole step; one without speculation; one in which some samples carry nothing; one that verified nothing."""
    partial = [{**GLOBAL_STEPS, **LONG.fields}, GLOBAL_STEPS, {**GLOBAL_STEPS, **SHORT.fields}]
    return [made_by_server(verl), [GLOBAL_STEPS] * 3, partial, [{**GLOBAL_STEPS, **ABORTED.fields}] * 2]


WHOLE, WITHOUT, PARTIAL, NOTHING_VERIFIED = range(4)


def acceptance(verl: str, step: int, which: str = "patched") -> dict[str, Any]:
    """Both metrics as each trainer has them; the message where one fails."""
    found = trainer(verl, steps(verl))[which][step]
    return {name: value["acceptance"] if isinstance(value, dict) else value for name, value in found.items()}


def trainers(verl: str) -> list[str]:
    return ["ray_trainer", "separation", *(["from_queue"] if verl in NEW else [])]


@pytest.mark.parametrize("verl", VERSIONS)
def test_all_trainers_divide_sums(verl: str) -> None:
    found = acceptance(verl, WHOLE)
    for name in trainers(verl):
        assert found[name] == pytest.approx(expected()), name


@pytest.mark.parametrize("verl", VERSIONS)
def test_without_speculation_there_is_no_metric(verl: str) -> None:
    found = acceptance(verl, WITHOUT)
    assert found["ray_trainer"] == found["separation"] == {}


@pytest.mark.parametrize("verl", VERSIONS)
def test_a_step_that_verified_nothing_has_no_metric(verl: str) -> None:
    found = acceptance(verl, NOTHING_VERIFIED)
    assert [found[name] for name in trainers(verl)] == [{}] * len(trainers(verl))


@pytest.mark.parametrize("verl", VERSIONS)
def test_samples_that_carry_nothing_count_for_nothing(verl: str) -> None:
    found = acceptance(verl, PARTIAL)
    assert found["ray_trainer"] == found["separation"] == pytest.approx(expected((LONG, SHORT)))


@pytest.mark.parametrize("verl", VERSIONS)
def test_all_other_metrics_stay(verl: str) -> None:
    found = trainer(verl, steps(verl))
    for step in (WHOLE, WITHOUT):
        for name in ("ray_trainer", "separation"):
            assert found["patched"][step][name]["others"] == found["bare"][step][name]["others"] > 20


@pytest.mark.parametrize("verl", NEW)
def test_a_resumed_sample_has_the_counts_of_all_its_requests(verl: str) -> None:
    found = trainer(verl, steps(verl))
    total = {name: LONG.fields[name] + SHORT.fields[name] for name in FIELDS}
    assert found["patched_samples"]["resumed"] == {**total, "tokens": 6}
    assert found["patched_samples"]["resumed_plain"] == {"tokens": 4}
    assert found["bare_samples"]["resumed"] == {"tokens": 6}


@pytest.mark.parametrize("verl", VERSIONS)
def test_a_sample_has_the_counts_of_all_its_turns(verl: str) -> None:
    found = trainer(verl, steps(verl))
    total = {name: LONG.fields[name] + SHORT.fields[name] for name in FIELDS}
    assert found["patched_samples"]["turns"] == {**total, "turns": 2}
    assert found["patched_samples"]["turns_plain"] == {"turns": 2}
    assert found["bare_samples"]["turns"] == {**(LONG.fields if verl == "0.7.1" else total), "turns": 2}


def test_what_is_patched_is_what_lacks_it() -> None:
    applied = {
        verl: {name for name, decision in trainer(verl, steps(verl))["decisions"].items() if decision == "applied"}
        for verl in VERSIONS
    }
    assert applied == {
        "0.7.1": {"ray_trainer_data", "separation", "request_0_7", "turn"},
        "0.8.0": {"ray_trainer", "main_ppo_sync", "separation", "queue", "request", "resumed_0_8"},
        "0.9.0": {"ray_trainer", "trainer_v1", "separation", "request", "resumed"},
        "0.9.1": {"ray_trainer", "trainer_v1", "separation", "request", "resumed"},
    }


# -- as released -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verl", VERSIONS)
def test_as_released_some_trainers_have_no_metric(verl: str) -> None:
    found = acceptance(verl, WHOLE, "bare")
    assert found["separation"] == {}
    assert (found["ray_trainer"] == {}) == (verl == "0.7.1")


@pytest.mark.parametrize("verl", NEW)
def test_as_released_requests_that_verified_nothing_pull_the_mean_down(verl: str) -> None:
    assert acceptance(verl, WHOLE, "bare")["ray_trainer"] == pytest.approx(mean_of_ratios())
    assert mean_of_ratios()[RATE] < 0.3 < expected()[RATE]
    assert set(acceptance(verl, NOTHING_VERIFIED, "bare")["ray_trainer"].values()) == {0.0}


def test_as_released_the_queue_trainer_of_verl_0_8_0_ends_in_an_error() -> None:
    assert acceptance("0.8.0", WHOLE, "bare")["from_queue"] == (
        "AttributeError: 'LinkedList' object has no attribute 'tolist'"
    )
