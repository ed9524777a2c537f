"""``roll_tensor`` in the two shapes that megatron-core has, and in those that it may get: rolled right, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from verl_mtp_plugin.environment import Environment
from verl_mtp_plugin.patching import Decision
from verl_mtp_plugin.training import hooks, needs
from verl_mtp_plugin.training.roll import problem, roll


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor[..., 1:], torch.zeros_like(tensor[..., :1])], -1)


def release(tensor: Any, shifts: int = -1, dims: int = -1, cp_group: Any = None) -> Any:
    """As in 0.15."""
    return shifted(tensor), shifted(tensor).sum()


def main_branch(
    tensor: Any, shifts: int = -1, dims: int = -1, cp_group: Any = None, packed_seq_params: Any = None,
    return_sum: bool = True,
) -> Any:  # fmt: skip
    """As in 0.20: nobody wants the sum."""
    assert not return_sum
    return shifted(tensor), None


def dev_branch(
    tensors: list[Any], shifts: int = -1, dims: int = -1, cp_group: Any = None, packed_seq_params: Any = None,
    fill_values: list[Any] | None = None, roll_context: Any = None, sequence_fields: list[str] | None = None,
    roll_depth: int = 0,
) -> list[Any]:  # fmt: skip
    """As on dev, #6246."""
    assert isinstance(tensors, list)
    return [shifted(tensor) for tensor in tensors]


def right(tensor: Any, shifts: int = -1, dims: int = -1, cp_group: Any = None) -> Any:
    """To the other side."""
    return tensor.roll(1, -1), None


def positions(sequence: Any, offset: int) -> Any:
    """Other names."""
    return shifted(sequence)


def bare(tensor: Any, shifts: int = -1, dims: int = -1, cp_group: Any = None) -> Any:
    """No tuple: its first row is not what was rolled."""
    return shifted(tensor)


def mapping(tensors: list[Any], shifts: int = -1, dims: int = -1, cp_group: Any = None) -> Any:
    """By name."""
    return {"rolled": [shifted(tensor) for tensor in tensors]}


@pytest.mark.parametrize("function", [release, main_branch, dev_branch])
def test_every_shape_that_megatron_core_has_is_rolled(function: Callable[..., Any]) -> None:
    assert problem(function) == ""
    labels = torch.arange(1, 7).view(2, 3)
    assert roll(function, labels, packed_seq_params=None).tolist() == [[2, 3, 0], [5, 6, 0]]


@pytest.mark.parametrize("function", [right, positions, bare, mapping])
def test_another_shape_is_seen_before_anything_is_patched(
    function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problem(function)
    assert any(need.where.endswith(":roll_tensor") and need.check for need in needs.MODEL)
    (need,) = (need for need in needs.MODEL if need.where.endswith(":roll_tensor"))
    assert need.check is not None
    assert need.check(function) == problem(function)


@pytest.mark.parametrize(
    ("body", "decision"),
    [
        ("def roll_tensor(tensor, shifts, dims, cp_group): pass", Decision.NOT_NEEDED),  # 0.15: nothing packed
        ("def roll_tensor(tensor, packed_seq_params): pass", Decision.LOST),  # moved elsewhere
        (
            "def roll_tensor(tensor, packed_seq_params): pass\n"
            "def _roll_tensor_packed_seq(tensor, shifts, dims, packed_seq_params, cp_group=None, other=1): pass",
            Decision.LOST,
        ),
        (
            "def roll_tensor(tensor, packed_seq_params): pass\n"
            "def _roll_tensor_packed_seq(tensor, shifts, dims, packed_seq_params, cp_group, return_sum=True): pass",
            Decision.APPLIED,
        ),
    ],
)
def test_a_packed_roll_that_fits_nowhere_is_lost_and_not_called_unneeded(body: str, decision: Decision) -> None:
    import types

    module: Any = types.ModuleType("upstream")
    exec(body, vars(module))
    verdict = hooks.PACKED_ROLL.decide(Environment(), module)
    assert verdict.decision is (Decision.UNSUPPORTED if decision is Decision.LOST else decision)
    assert hooks.PACKED_ROLL.optimization  # so that the engine calls it lost
