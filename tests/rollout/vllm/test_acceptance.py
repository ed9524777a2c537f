"""Acceptance with vLLM: the samples of a step carry, together, what the engine has counted."""

from __future__ import annotations

from typing import Any

import pytest

from ..acceptance.scenario import FIELDS
from .processes import PAIRS, cases
from .server import DRAFTS_PER_STEP


def acceptance(verl: str, vllm: str, which: str = "patched") -> Any:
    return cases(verl, vllm)[which]["acceptance"]


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_samples_carry_what_the_engine_counts(verl: str, vllm: str) -> None:
    found = acceptance(verl, vllm)["drafting"]
    assert [sorted(request["fields"]) for request in found["requests"]] == [sorted(FIELDS)] * 5
    drafted, accepted, verified = (sum(request["fields"][name] for request in found["requests"]) for name in FIELDS)
    engine = found["engine"]
    assert (drafted, accepted, verified) == (
        engine["num_draft_tokens"],
        engine["num_accepted_tokens"],
        engine["num_drafts"],
    )
    assert drafted == verified * DRAFTS_PER_STEP > accepted > 0
    # The last one made no verify step, and came after all others had taken what there was.
    assert set(found["requests"][-1]["fields"].values()) == {0}


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_without_speculation_nothing_is_added(verl: str, vllm: str) -> None:
    found = acceptance(verl, vllm)["plain"]
    assert [request["fields"] for request in found["requests"]] == [{}] * 5
    assert (found["loggers"], acceptance(verl, vllm)["drafting"]["loggers"]) == (0, 1)


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_with_vllms_own_statistics_too(verl: str, vllm: str) -> None:
    fields = acceptance(verl, vllm)["with_stats"]["fields"]
    assert fields[FIELDS[0]] == fields[FIELDS[2]] * DRAFTS_PER_STEP > 0


# -- as released -------------------------------------------------------------------------------------------------------


def test_as_released_verl_0_8_0_fails_in_every_request() -> None:
    found = acceptance("0.8.0", "0.12.0", "bare")
    assert {request["error"] for request in found["drafting"]["requests"]} == {
        "RuntimeError: vLLM MTP rollout requires request_spec_decode_stats; set disable_log_stats=False."
    }
    assert found["with_stats"] == {
        "error": "AttributeError: 'RequestStateStats' object has no attribute 'request_spec_decode_stats'"
    }


@pytest.mark.parametrize(("verl", "vllm"), [pair for pair in PAIRS if pair[0] != "0.8.0"])
def test_as_released_the_others_carry_nothing(verl: str, vllm: str) -> None:
    found = acceptance(verl, vllm, "bare")
    assert [request["fields"] for request in found["drafting"]["requests"]] == [{}] * 5
