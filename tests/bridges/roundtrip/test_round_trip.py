"""Weights through real bridges and real megatron-core and back: names, bits, and what Megatron holds in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from . import layouts
from .cells import (
    FAILURES,
    FAULTY,
    LEFT_AT_RANDOM,
    MBRIDGE,
    MENDED,
    MIMO,
    MTP_TENSORS,
    PADDED,
    ROUND_TRIPS,
    WITHOUT_MTP,
    Case,
    Stack,
)
from .configs import YARN, config
from .faults import NOTICED_BY
from .runner import run


def places(table: Mapping[Stack, Iterable[str]]) -> pytest.MarkDecorator:
    """A test for every case of a table."""
    cells = [(stack, case) for stack, cases in table.items() for case in cases]
    return pytest.mark.parametrize(("stack", "case"), cells, ids=[f"{stack}-{case}" for stack, case in cells])


def outcome(stack: Stack, case: str) -> dict[str, Any]:
    found: dict[str, Any] = run(stack)["cases"][str(Case.parse(case))]
    return found


@places(ROUND_TRIPS)
def test_a_checkpoint_comes_back_bit_for_bit(stack: Stack, case: str) -> None:
    found, parsed = outcome(stack, case), Case.parse(case)
    assert found["error"] is None
    assert found["supported"], "the probe must say what the round trip shows"
    copies = sorted(layouts.copies(config(parsed)))
    # Where the trunk has DeepSeek-V3's 61 layers mbridge exports the copies of embedding and head; nobody else does.
    exports_copies = stack.bridge == MBRIDGE and "layers61" in parsed.options
    has_copies = "copies" in parsed.options
    assert found["missing"] == (copies if has_copies and not exports_copies else [])
    assert found["extra"] == (copies if exports_copies and not has_copies else [])
    assert sorted(found["copies"]) == (copies if exports_copies else [])
    assert all(found["copies"].values())
    assert found["different"] == []


@places(ROUND_TRIPS)
def test_megatron_holds_the_mtp_layer_that_the_checkpoint_means(stack: Stack, case: str) -> None:
    found = outcome(stack, case)
    assert found["mtp_layers"] == 1
    assert found["mtp_exported"] == MTP_TENSORS[Case.parse(case).family]
    assert found["wrong_in_megatron"] == []
    assert found["sharded"]
    assert found["unloaded"] == []


@places(FAILURES)
def test_what_a_bridge_cannot_do_ends_in_an_error(stack: Stack, case: str) -> None:
    assert (outcome(stack, case)["error"] or "").startswith(FAILURES[stack][case])


@places(WITHOUT_MTP)
def test_what_is_built_without_mtp_is_what_the_probe_refuses(stack: Stack, case: str) -> None:
    found = outcome(stack, case)
    assert found["supported"] is False
    assert found["error"] is None
    assert found["mtp_layers"] == found["mtp_exported"] == 0
    assert found["missing"] == sorted(layouts.mtp(config(Case.parse(case))))
    assert found["different"] == []  # the trunk comes back all the same, so nobody notices


@places(LEFT_AT_RANDOM)
def test_a_tied_model_that_is_built_untied_keeps_a_random_head(stack: Stack, case: str) -> None:
    """No real model of these families is tied. ``share_embeddings_and_output_weights=True`` as an override helps."""
    found = outcome(stack, case)
    assert found["error"] is None
    assert found["unloaded"] == ["output_layer.weight"]
    assert found["missing"] == found["extra"] == found["different"] == []  # a round trip alone does not show it


@places(PADDED)
def test_a_padded_vocabulary_comes_back_with_its_padding(stack: Stack, case: str) -> None:
    found = outcome(stack, case)
    assert found["longer"] == {"model.embed_tokens.weight": 98, "lm_head.weight": 98}
    assert found["different"] == sorted(found["longer"])
    assert found["missing"] == found["extra"] == found["unloaded"] == found["wrong_in_megatron"] == []


@places(FAULTY)
def test_a_fault_is_noticed(stack: Stack, case: str) -> None:
    found = outcome(stack, case)
    (fault,) = Case.parse(case).options
    assert found[NOTICED_BY[fault]]
    if fault == "exchanged":
        assert found["missing"] == found["extra"] == found["different"] == []  # only Megatron's side shows it


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("megatron_core", ["0.17.1", "0.18.2", "0.19.2"])
def test_both_bridges_make_the_same_of_mimo(megatron_core: str, size: int) -> None:
    stacks = [stack for stack in ROUND_TRIPS if stack.megatron_core == megatron_core]
    one, other = (outcome(stack, f"MiMo@{size}")["digests"] for stack in stacks)
    assert len(one) == MTP_TENSORS[MIMO] - 2 - 2 - 1  # query, key and value (twice), gate and up are one in Megatron
    assert one == other


def test_mbridge_gets_the_scaling_of_deepseeks_rope() -> None:
    stack = next(stack for stack, cases in ROUND_TRIPS.items() if any("yarn" in case for case in cases))
    rope = outcome(stack, next(case for case in ROUND_TRIPS[stack] if "yarn" in case))["rope"]
    assert (rope.pop("rope_type"), rope.pop("rotary_base"), rope.pop("rotary_scaling_factor")) == ("yarn", 1e4, 40)
    assert rope == {name: YARN[name] for name in rope}


@pytest.mark.parametrize("stack", MENDED, ids=str)
def test_only_what_is_broken_is_mended(stack: Stack) -> None:
    decisions = run(stack)["decisions"]
    assert sorted(name for name, decision in decisions.items() if decision == "applied") == sorted(MENDED[stack])
    assert {decision for name, decision in decisions.items() if name not in MENDED[stack]} <= {"not_needed"}
