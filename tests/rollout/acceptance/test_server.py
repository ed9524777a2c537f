"""verl's SGLang server carries what SGLang counts, in each verl, with SGLang's own names of each release.

Real: verl's ``SGLangHttpServer``, SGLang's ``TokenizerManager`` and what makes ``meta_info`` there. The scheduler that
reports the counts stands in.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract import stacks

from .processes import PAIRS, server
from .scenario import ABORTED, ALL, DRAFT_TOKENS, FIELDS, FINISHED, LONG, ONE_TOKEN, SHORT

NOTHING = dict.fromkeys(FIELDS, 0)


def counts(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer["fields"].items() if name in FIELDS}


@pytest.mark.parametrize(("verl", "sglang"), PAIRS)
def test_each_request_carries_its_own_counts(verl: str, sglang: str) -> None:
    found = server(verl, sglang)
    assert set(found["decisions"].values()) == {"applied"}
    for request in ALL:
        assert counts(found["patched"][request.name]) == request.fields, request.name
    assert found["patched"][ABORTED.name]["reason"] == "abort"
    for request in FINISHED:
        assert found["patched"][request.name]["tokens"] == request.tokens


@pytest.mark.parametrize(("verl", "sglang"), PAIRS)
def test_requests_at_once_do_not_mix(verl: str, sglang: str) -> None:
    found = [counts(answer) for answer in server(verl, sglang)["concurrent"]]
    assert found == [LONG.fields, SHORT.fields] * (len(found) // 2)


@pytest.mark.parametrize(("verl", "sglang"), PAIRS)
def test_a_server_without_speculation_carries_nothing(verl: str, sglang: str) -> None:
    assert list(server(verl, sglang)["plain"]["fields"]) == ["global_steps"]


@pytest.mark.parametrize(("verl", "sglang"), PAIRS)
def test_requests_of_others_are_left_alone(verl: str, sglang: str) -> None:
    found = server(verl, sglang)
    assert found["meta_info_patched"] == found["meta_info"]


def test_the_names_change() -> None:
    """Why the counts are looked for under more than one name."""
    names = {sglang: frozenset(server(verl, sglang)["meta_info"]) for verl, sglang in PAIRS}
    first, newest = names["0.5.6"], names[stacks.SGLANG[-1]]
    assert names[stacks.SGLANG_SESSIONS] == newest
    assert first == names["0.5.8"]
    assert {name for name in first - newest if "token_num" in name} == {"spec_accept_token_num", "spec_draft_token_num"}
    assert newest - first == {"spec_num_correct_drafts", "spec_num_proposed_drafts"}
    assert newest < names["0.5.12.post1"]


# -- as released -------------------------------------------------------------------------------------------------------


def test_as_released_verl_0_7_1_carries_nothing() -> None:
    assert [list(answer["fields"]) for answer in server("0.7.1", "0.5.6")["bare"].values()] == [["global_steps"]] * 5


def test_as_released_verl_0_8_0_fails_where_no_verify_step_was_made() -> None:
    found = server("0.8.0", "0.5.8")["bare"]
    for request in (ONE_TOKEN, ABORTED):
        assert found[request.name] == {"error": "KeyError: 'spec_draft_token_num'"}
    assert counts(found[LONG.name]) == LONG.fields


@pytest.mark.parametrize(("verl", "sglang"), [pair for pair in PAIRS if pair[0].startswith("0.9")])
def test_as_released_verl_0_9_invents_drafts_where_none_were_made(verl: str, sglang: str) -> None:
    found = server(verl, sglang)["bare"]
    for request in (ONE_TOKEN, ABORTED):
        assert counts(found[request.name]) == {**NOTHING, FIELDS[0]: DRAFT_TOKENS}


@pytest.mark.parametrize(("verl", "sglang"), [pair for pair in PAIRS if pair[0] == stacks.VERL[-1]])
def test_as_released_the_newest_verl_sees_no_accepted_draft(verl: str, sglang: str) -> None:
    found = server(verl, sglang)
    assert found["meta_info"]["spec_accept_rate"] == LONG.accepted / (LONG.verify * (DRAFT_TOKENS - 1)) == 0.88
    assert counts(found["bare"][LONG.name]) == dict(zip(FIELDS, (DRAFT_TOKENS, 0, LONG.verify)))
