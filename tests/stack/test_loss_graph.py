"""The chunked loss in the graph: what gets a gradient, how often, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .loss_oracle import OBJECTIVES, call, random_case, run


def test_gradient_is_scaled_by_what_comes_from_above() -> None:
    case = random_case(17, 6, 2, 5, 13, chunk_tokens=4)
    plain = run(case)[1]
    torch.testing.assert_close(run(case, factor=-2.5)[1], -2.5 * plain)
    hidden = case.hidden.requires_grad_()
    loss, _ = call(case, hidden)
    for _ in range(2):  # the saved gradient must survive a backward pass
        (again,) = torch.autograd.grad(3 * loss, hidden, retain_graph=True)
        torch.testing.assert_close(again, 3 * plain)


def test_the_head_and_the_policy_get_no_gradient() -> None:
    case = random_case(19, 6, 2, 5, 13, objective="soft_cross_entropy")
    hidden, weight, target = (x.clone().requires_grad_() for x in (case.hidden, case.weight, case.target_hidden))
    before = weight.detach().clone(), hidden.detach().clone(), target.detach().clone()
    loss, _ = call(case.changed(weight=weight, target_hidden=target), hidden)
    loss.backward()
    assert [tensor.grad is None for tensor in (hidden, weight, target)] == [False, True, True]
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, hidden, target)))  # nor is anything written to


def test_no_second_derivative_rather_than_a_wrong_one() -> None:
    case = random_case(21, 4, 1, 3, 9)
    hidden = case.hidden.requires_grad_()
    loss, _ = call(case, hidden)
    (gradient,) = torch.autograd.grad(loss * loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.square().sum(), hidden)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_a_graph_the_same_totals(objective: str) -> None:
    case = random_case(23, 6, 2, 5, 13, objective=objective, chunk_tokens=5)
    loss, _, totals = run(case)
    with torch.no_grad():
        quiet, quiet_totals = call(case, case.hidden.clone().requires_grad_())
    frozen, frozen_totals = call(case, case.hidden.detach())
    for value, found in ((quiet, quiet_totals), (frozen, frozen_totals)):
        assert not value.requires_grad
        assert value.grad_fn is None
        torch.testing.assert_close(value, loss)
        for name in ("loss", "correct", "tokens"):
            torch.testing.assert_close(getattr(found, name), getattr(totals, name))
            assert getattr(totals, name).shape == ()
            assert not getattr(totals, name).requires_grad


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"labels": torch.full((2, 6), 13)}, "labels from 13 to 13"),
        ({"labels": torch.full((2, 6), -100)}, "loss mask of 0"),
        ({"labels": torch.zeros(6, 2, dtype=torch.int64)}, r"\[b, s\] = \[2, 6\]"),
        ({"mask": torch.ones(1, 6)}, r"\[b, s\] = \[2, 6\]"),
        ({"objective": "total_variation", "target_hidden": None}, "target_hidden"),
        ({"chunk_tokens": 0}, "chunk_tokens=0"),
    ],
)
def test_refusals(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(random_case(25, 6, 2, 5, 13, mask="all").changed(**wrong))
