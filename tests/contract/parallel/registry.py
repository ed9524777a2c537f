"""The list of checks, what they run in, and the comparison that most of them make."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..checks.registry import expect, expect_close, expect_same, is_mtp, only
from ..models import build
from ..reference import cross_entropies
from .batches import Grid, Item, grid
from .expected import Expected, LossesOf, Normalization, counts, expected
from .groups import Groups
from .layouts import Layout
from .stand_ins import forget_expert_losses
from .step import Outcome, Trainer

#: fp32 against fp64, with sums in another order, relative to the largest gradient of a parameter.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Cell:
    """A layout in use."""

    layout: Layout
    groups: Groups
    megatron_core: tuple[int, ...]

    @property
    def tolerance(self) -> float:
        """Largest difference from the reference, relative to a parameter's largest gradient."""
        return TOLERANCE

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def trainer(self, **options: Any) -> Trainer:
        """A fresh model of the layout; ``options`` as :class:`Trainer` takes them."""
        return Trainer(self.layout, **options)

    def grid(self, microbatches: int = 1) -> list[list[Item]]:
        """Random tokens for every micro-batch and replica."""
        return grid(self.layout, microbatches)

    def whole(self, **model: Any) -> Any:
        """The same model in one process, which nobody has asked anything of."""
        from verl_mtp_plugin.testing.te_attention import DotProductAttention

        return build(self.device, attention=DotProductAttention, **model)

    def expected(self, batches: Grid, normalization: Normalization, **options: Any) -> Expected:
        """From one process that holds everything; every process computes it for itself."""
        how = {name: options.pop(name) for name in ("detach_encoder", "losses_of") if name in options}
        whole = {k: v for k, v in {**self.layout.model, **options}.items() if k != "sequence_parallel"}
        with self.groups.single():
            forget_expert_losses()
            return expected(self.whole(**whole), batches, self.layout, normalization, **how)

    def tokens(self, batches: Grid, depths: int) -> contextlib.AbstractContextManager[None]:
        """The step's trained tokens made known, as the patches on verl's engine do."""
        from verl_mtp_plugin.training.step.normalization import StepTokens, step_tokens

        main = sum(float(b.loss_mask.sum()) for step in batches for item in step for b in item.rows)
        totals = tuple(float(count) for count in counts(batches, depths))
        return step_tokens(StepTokens(totals, ranks=self.layout.data * self.layout.context, divisor=main))


CheckFunction = Callable[[Cell], str]


@dataclass(frozen=True)
class Check:
    """What it says in one line, the function, and where there is something to check."""

    says: str
    run: CheckFunction
    since: tuple[int, ...]  # the megatron-core that brought what is checked
    pipeline_only: bool


CHECKS: dict[str, Check] = {}


def check(*, since: tuple[int, ...] = (), pipeline_only: bool = False) -> Callable[[CheckFunction], CheckFunction]:
    """Register a check under its function's name; the first line of the docstring is what it says."""

    def register(function: CheckFunction) -> CheckFunction:
        says = (function.__doc__ or "").strip().splitlines()[0]
        CHECKS[function.__name__] = Check(says, function, since, pipeline_only)
        return function

    return register


def checks_for(layout: Layout, megatron_core: tuple[int, ...]) -> list[str]:
    """The names of the checks that a layout runs on a release; no other one counts as passed."""
    return [
        name
        for name, each in CHECKS.items()
        if megatron_core >= each.since and (layout.pipeline > 1 or not each.pipeline_only)
    ]


def as_expected(
    cell: Cell,
    batches: Grid | None = None,
    normalization: Normalization = Normalization.RANK,
    *,
    detach_encoder: bool = False,
    losses_of: LossesOf = cross_entropies,
    besides: Mapping[str, Any] | None = None,
    **model: Any,
) -> str:
    """All gradients of a step. With ``detach_encoder`` those of the MTP block alone: experts have other losses too."""
    batches = cell.grid() if batches is None else batches
    wanted = cell.expected(
        batches, normalization, detach_encoder=detach_encoder, losses_of=losses_of, **model
    ).gradients
    is_global = normalization is Normalization.GLOBAL
    with cell.tokens(batches, model.get("mtp", 1)) if is_global else contextlib.nullcontext():
        outcome = cell.trainer(detach_encoder=detach_encoder, **model, **(besides or {})).run(batches)
    names = [name for name in wanted if is_mtp(name) or not detach_encoder]
    expect(any(is_mtp(name) and bool(wanted[name].any()) for name in names), "the reference has no MTP gradient")
    return expect_close(outcome.gradients, only(wanted, names), cell.tolerance, "gradient of")


def plain(cell: Cell, batches: Grid, **model: Any) -> Outcome:
    """The same layout without MTP."""
    return cell.trainer(mtp=None, **model).run(batches, labels=False, main=1.0)


def expect_outputs(outcome: Outcome, other: Outcome) -> None:
    """The same logits, bit for bit."""
    for one, two in zip(outcome.outputs, other.outputs, strict=True):
        expect_same(one, two, "logits")
