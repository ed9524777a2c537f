"""Packed sequences are rolled as megatron-core rolls them, whatever their number, without its work for each."""

from __future__ import annotations

import pytest

from tests.contract.stacks import MEGATRON_CORE
from verl_mtp_plugin.training.hooks import ZIGZAG

from .processes import ask

PACKED = tuple(version for version in MEGATRON_CORE if not version.startswith("0.15"))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("megatron_core", PACKED)
def test_every_bit_is_megatron_cores(megatron_core: str, ranks: int) -> None:
    for found in ask("packed_roll_worker", megatron_core, ranks=ranks):
        assert found["decisions"] == {"_roll_tensor_packed_seq": "applied", ZIGZAG: "not_needed"}
        assert set(found["same"].values()) == {found["cases"]}, found["same"]
        few, many = found["operations"]["ours"]
        assert few == many < 50
        few, many = found["operations"]["theirs"]
        assert many > 4 * few
