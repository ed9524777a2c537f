"""Nested tensors are packed as verl packs them, and cut into their sequences once."""

from __future__ import annotations

import pytest
import torch

from tests.contract.stacks import VERL
from verl_mtp_plugin.verl_fixes.packing import Rows

from .processes import ask


def test_what_is_no_lookup_is_asked_of_the_tensor() -> None:
    tensor = torch.nested.as_nested_tensor([torch.arange(3.0), torch.arange(2.0)], layout=torch.jagged)
    rows = Rows(tensor)
    assert [row.tolist() for row in (rows[0], rows[1])] == [[0, 1, 2], [0, 1]]
    assert (len(rows), rows.shape[0], rows.offsets().tolist()) == (2, 2, [0, 3, 5])
    with pytest.raises(RuntimeError, match="not supported for NestedTensor"):  # as it says itself
        rows[:, 1:]
    assert torch.zeros_like(rows).values().tolist() == [0] * 5
    assert torch.equal(torch.add(rows, other=rows).values(), 2 * tensor.values())


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("verl", VERL)
def test_every_bit_is_verls(verl: str, ranks: int) -> None:
    for found in ask("packing_worker", "0.18.2", ranks=ranks, verl=verl):
        assert set(found["agreed"].values()) == {found["cases"]}, found["agreed"]
        packed = {kind for kind, number in found["packed"].items() if number == found["cases"]}
        # What verl refuses, some vectors in 0.7 and in 0.8 with context parallelism, it refuses with the plugin alike.
        some_refused = verl == "0.7.1" or (verl == "0.8.0" and ranks > 1)
        assert packed == {"tokens", "mask"} | (set() if some_refused else {"vectors"})
        assert found["cuts"]["ours"] == [1, 1]
        assert found["cuts"]["theirs"] == found["sequences"]
