"""The TransformerEngine stand-ins compute what Megatron's own layers do, on one rank and on two."""

from __future__ import annotations

import pytest

from tests.contract.stacks import MEGATRON_CORE

from .processes import ask


@pytest.mark.parametrize("megatron_core", MEGATRON_CORE)
def test_transformer_engine_specs_equal_local_specs(megatron_core: str) -> None:
    (found,) = ask("te_specs_worker", megatron_core)
    assert found["names_differ"] == []
    assert found["hidden"] < 1e-5
    assert found["gradients"] < 1e-4


def test_two_context_parallel_ranks_compute_what_one_does() -> None:
    for found in ask("te_context_worker", "0.16.1", ranks=2):
        assert max(found.values()) < 1e-5, found
