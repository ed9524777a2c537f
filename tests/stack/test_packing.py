"""Nested tensors are packed as verl packs them, and cut into their sequences once."""

from __future__ import annotations

import pytest

from tests.contract.stacks import VERL

from .processes import ask


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("verl", VERL)
def test_every_bit_is_verls(verl: str, ranks: int) -> None:
    for found in ask("packing_worker", "0.18.2", ranks=ranks, verl=verl):
        assert set(found["agreed"].values()) == {found["cases"]}, found["agreed"]
        assert found["cuts"]["ours"] == [1, 1]
        assert found["cuts"]["theirs"] == found["sequences"]
