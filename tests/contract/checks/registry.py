"""The list of checks, and the comparisons they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..world import Outcome, World


class Kind(str, Enum):
    """What a check counts for."""

    REQUIRED = "required"  # asked of verl alone and of verl with the plugin
    PLUGIN = "plugin"  # of the plugin itself: nothing to ask without it


@dataclass(frozen=True)
class Check:
    """A check: its name, what it counts for, what it says in one line, and the function."""

    name: str
    kind: Kind
    says: str
    run: Callable[[World], str]


CHECKS: list[Check] = []


def check(kind: Kind = Kind.REQUIRED) -> Callable[[Callable[[World], str]], Callable[[World], str]]:
    """Register a check under its function's name; the first line of the docstring is what it says."""

    def register(function: Callable[[World], str]) -> Callable[[World], str]:
        says = (function.__doc__ or "").strip().splitlines()[0]
        CHECKS.append(Check(function.__name__, kind, says, function))
        return function

    return register


def expect(condition: bool, otherwise: str) -> None:
    """Not ``assert``, so that it holds under ``python -O`` too."""
    if not condition:
        raise AssertionError(otherwise)


def is_mtp(name: str) -> bool:
    """Whether a parameter belongs to the MTP block."""
    return name.startswith("mtp.")


def expect_same(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Equal bit for bit."""
    expect(actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}")
    if not torch.equal(actual, expected):
        raise AssertionError(f"{what} differs by up to {(actual - expected).abs().max().item():.2g}")


def expect_all_same(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str) -> None:
    """Every tensor of ``expected`` is in ``actual``, bit for bit."""
    expect(bool(expected), f"{what}: nothing to compare")
    for name, value in expected.items():
        expect_same(actual[name], value, f"{what} {name}")


def expect_close(
    actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], tolerance: float, what: str
) -> str:
    """Every tensor of ``expected`` is in ``actual`` up to ``tolerance``; returns the worst difference.

    Differences are relative to the tensor's largest value, or to a thousandth of the largest of all where that is more.
    """
    largest = max(float(value.abs().max()) for value in expected.values())
    expect(largest > 0, f"{what}: the reference is zero everywhere, so it proves nothing")
    worst, where = 0.0, ""
    for name, value in expected.items():
        size = float(value.abs().max())
        difference = float((actual[name].double() - value.double()).abs().max())
        expect(difference == difference, f"{what} {name} is not a number")
        relative = difference / max(size, 1e-3 * largest)
        if relative >= worst:
            worst, where = relative, f"{name} differs by up to {difference:.2g} from a reference of size {size:.2g}"
    expect(worst <= tolerance, f"{what} {where}")
    return f"largest relative difference {worst:.1e}"


def expect_losses(outcome: Outcome, losses: list[float], tolerance: float) -> str:
    """Megatron's tracker holds these mean losses, one per depth."""
    tracked = outcome.tracker.get("loss_values", outcome.tracker.get("values"))
    expect(tracked is not None, "no MTP loss in the tracker")
    values = [] if tracked is None else tracked.tolist()
    expect(len(values) == len(losses), f"{len(values)} losses in the tracker, expected {len(losses)}")
    for depth, (value, loss) in enumerate(zip(values, losses, strict=True)):
        expect(
            abs(value - loss) <= tolerance * abs(loss), f"depth {depth + 1}: tracked loss {value:.6f}, not {loss:.6f}"
        )
    return "losses " + ", ".join(f"{value:.4f}" for value in values)


def expect_no_mtp(outcome: Outcome) -> None:
    """No MTP layer ran, the vocabulary was projected on once, nothing was tracked, no MTP weight got a gradient."""
    expect(outcome.mtp_calls == 0, f"{outcome.mtp_calls} MTP layer calls")
    expect(outcome.head_calls == 1, f"{outcome.head_calls} vocabulary projections")
    expect(not outcome.tracker, f"the tracker was written: {sorted(outcome.tracker)}")
    reached = [name for name, value in outcome.gradients.items() if is_mtp(name) and bool(value.any())]
    expect(not reached, f"an MTP loss was attached: {len(reached)} mtp.* gradients")


def only(gradients: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The named ones."""
    return {name: gradients[name] for name in names}
