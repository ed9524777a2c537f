"""Qwen3-Next through the older Megatron-Bridges, with the transformers that they ask for: nothing is put back."""

from __future__ import annotations

import pytest

from tests.contract import stacks

from .cells import MEGATRON_BRIDGE, MTP_TENSORS, QWEN, Stack
from .prepare import READ_OFF_QWEN3_NEXT
from .runner import run

CASES = ("Qwen3-Next@1", "Qwen3-Next@2")


@pytest.mark.parametrize("release", stacks.ASKED_TRANSFORMERS)
def test_qwen3_next_comes_back_bit_for_bit(release: str) -> None:
    stack = Stack(MEGATRON_BRIDGE, release, stacks.BRIDGE_CORES[release])
    for case, found in run(stack, CASES, stacks.ASKED_TRANSFORMERS[release])["cases"].items():
        assert (found["error"], found["supported"]) == (None, True), case
        assert (found["mtp_layers"], found["mtp_exported"]) == (1, MTP_TENSORS[QWEN]), case
        for wrong in ("missing", "extra", "different", "wrong_in_megatron", "unloaded"):
            assert found[wrong] == [], (case, wrong)


def test_the_releases_are_those_for_which_something_is_put_back() -> None:
    assert READ_OFF_QWEN3_NEXT.keys() == stacks.ASKED_TRANSFORMERS.keys()
