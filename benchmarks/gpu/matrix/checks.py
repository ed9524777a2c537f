"""The checks: most are those of tests/contract/parallel, and a few are only about GPUs."""

from __future__ import annotations

from typing import Final

import torch

from tests.contract.checks.registry import expect, expect_all_same, is_mtp
from tests.contract.parallel import checks as shared
from tests.contract.parallel.batches import Grid, Item
from tests.contract.parallel.expected import Normalization
from tests.contract.parallel.registry import Cell, Check, CheckFunction, expect_outputs
from tests.contract.parallel.step import Trainer
from tests.contract.parallel.weights import HEAD

from .cell import GpuTrainer, twice

MIB: Final = 2**20
#: Of tests/contract/parallel, asked of verl with the plugin and of verl as released.
SHARED: Final = (
    "labels_none", "no_grad", "gradients", "gradients_detached", "gradients_tied", "depths", "recompute",
    "microbatches", "per_token", "head_isolated", "detach_isolates", "detach_isolates_tied",
)  # fmt: skip
#: The plugin's own: the step's tokens, its objectives, its metric.
PLUGIN: Final = (
    "step_tokens", "step_tokens_per_token", "soft_objective", "metric", "zero_on_one_rank", "zero_everywhere",
)  # fmt: skip
OWN: dict[str, Check] = {}


def _check(function: CheckFunction) -> CheckFunction:
    says = (function.__doc__ or "").strip().splitlines()[0]
    OWN[function.__name__] = Check(says, function, since=(), pipeline_only=False)
    return function


@_check
def repeatable(cell: Cell) -> str:
    """The same step twice: the same logits and gradients, bit for bit; without it no other check can ask for as much"""
    one, two = twice(cell, cell.grid())
    expect_outputs(one, two)
    expect_all_same(one.gradients, two.gradients, "gradient of")
    return f"{len(one.gradients)} gradients bit-equal"


@_check
def recompute_costs(cell: Cell) -> str:
    """Log-prob recompute, labels given or not: no MTP layer, one projection a micro-batch, memory as without MTP"""
    batches, said = cell.grid(2), []
    subject, bare = cell.trainer(), cell.trainer(mtp=None)
    with torch.no_grad():
        for trainer in (subject, bare):  # kernels and plans are made
            trainer.run(batches, labels=False)
        limit = _peak(bare, batches, labels=False) + MIB
        for labels in (False, True):
            outcome = subject.run(batches, labels=labels)
            expect(outcome.mtp_calls == 0, f"labels {labels}: {outcome.mtp_calls} MTP layer calls")
            expect(outcome.head_calls == 2, f"labels {labels}: {outcome.head_calls} vocabulary projections, not 2")
            peak = _peak(subject, batches, labels=labels)
            expect(peak <= limit, f"labels {labels}: {peak} bytes at the peak, {limit - MIB} without MTP")
            said.append(f"{peak / MIB:.2f} MiB")
    return f"peak {' and '.join(said)}, {(limit - MIB) / MIB:.2f} MiB without MTP"


def _peak(trainer: Trainer, batches: Grid, *, labels: bool) -> int:
    """Bytes at the peak of an evaluation above what was allocated before."""
    assert isinstance(trainer, GpuTrainer)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = int(torch.cuda.memory_allocated())
    trainer.run(batches, labels=labels)
    return trainer.peak_bytes - before


@_check
def head_zero(cell: Cell) -> str:
    """The MTP loss alone, two micro-batches: the untied head's gradient is zero, exactly, and the MTP block's is not"""
    outcome = cell.trainer().run(cell.grid(2))
    largest = float(outcome.gradients[HEAD].abs().max())
    expect(largest == 0, f"gradient of the head, up to {largest:.2g}")
    expect(any(is_mtp(name) and bool(value.any()) for name, value in outcome.gradients.items()), "MTP is not trained")
    return "zero"


@_check
def loss(cell: Cell) -> str:
    """Every token trained, two depths: the losses that Megatron reports are the reference's, within 1%"""
    batches = [[_all_trained(item) for item in step] for step in cell.grid()]
    wanted = cell.expected(batches, Normalization.RANK, mtp=2).losses
    found = cell.trainer(mtp=2).run(batches).tracked
    expect(len(found) == len(wanted), f"{len(found)} losses reported, expected {len(wanted)}")
    for depth, (one, two) in enumerate(zip(found, wanted, strict=True), 1):
        expect(abs(one - two) <= 1e-2 * two, f"depth {depth}: {one:.5f}, expected {two:.5f}")
    return f"{', '.join(f'{value:.5f}' for value in found)}; expected {', '.join(f'{value:.5f}' for value in wanted)}"


@_check
def gradient_scale(cell: Cell) -> str:
    """Detached, two micro-batches: the MTP block's gradient, projected on the reference's, is as long, within 0.5%"""
    batches = cell.grid(2)
    wanted = cell.expected(batches, Normalization.RANK, detach_encoder=True).gradients
    found = cell.trainer(detach_encoder=True).run(batches).gradients
    names = [name for name in wanted if is_mtp(name)]  # where rounding is as often up as down, and so averages out
    along = sum(float((found[name].double() * wanted[name].double()).sum()) for name in names)
    scale = along / sum(float(wanted[name].double().square().sum()) for name in names)
    expect(abs(scale - 1) <= 5e-3, f"{scale:.5f} times the reference's")
    return f"{scale:.5f}"


def _all_trained(item: Item) -> Item:
    rows = tuple(row.replace(loss_mask=torch.ones_like(row.loss_mask)) for row in item.rows)
    return Item(rows, item.packed)


CHECKS: Final = {
    "repeatable": OWN["repeatable"],
    **{name: shared.CHECKS[name] for name in SHARED[:2]},
    **{name: each for name, each in OWN.items() if name != "repeatable"},
    **{name: shared.CHECKS[name] for name in (*SHARED[2:], *PLUGIN)},
}


def names(*, plugin: bool) -> list[str]:
    """What is asked, in order."""
    return [name for name in CHECKS if plugin or name not in PLUGIN]
