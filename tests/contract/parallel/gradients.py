"""The MTP loss's gradients: as in one process that holds everything, whatever is trained where."""

from __future__ import annotations

import contextlib

import torch

from ..checks.objectives import trained_for
from ..checks.registry import expect
from .batches import Item
from .expected import Normalization, soft_cross_entropies
from .registry import Cell, as_expected, check


@check()
def gradients(cell: Cell) -> str:
    """Uneven trained tokens: gradients of MTP block, trunk and embedding; none of the head"""
    return as_expected(cell)


@check()
def gradients_detached(cell: Cell) -> str:
    """The same with detach_encoder: gradients of the MTP block"""
    return as_expected(cell, detach_encoder=True)


@check()
def gradients_tied(cell: Cell) -> str:
    """The same with tied weights: the embedding without the head's share"""
    return as_expected(cell, tied=True)


@check()
def depths(cell: Cell) -> str:
    """The same with two depths"""
    return as_expected(cell, mtp=2)


@check(since=(0, 17))
def repeated_layer(cell: Cell) -> str:
    """Two depths by one layer (mtp_use_repeated_layer, since megatron-core 0.17)"""
    return as_expected(cell, mtp=2, mtp_use_repeated_layer=True)


@check(since=(0, 17))
def mup(cell: Cell) -> str:
    """MuP (use_mup, since megatron-core 0.17): MTP logits scaled as the main ones"""
    return as_expected(cell, use_mup=True, mup_base_hidden_size=8)


@check()
def recompute(cell: Cell) -> str:
    """Full activation recompute, two depths: the same gradients"""
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return as_expected(cell, mtp=2, besides=full)


@check()
def microbatches(cell: Cell) -> str:
    """Two uneven micro-batches: upstream's mean per micro-batch and rank"""
    return as_expected(cell, cell.grid(2))


@check()
def per_token(cell: Cell) -> str:
    """The same with calculate_per_token_loss"""
    return as_expected(cell, cell.grid(2), Normalization.PER_TOKEN, calculate_per_token_loss=True)


@check()
def step_tokens(cell: Cell) -> str:
    """The step's tokens known, two uneven micro-batches, two depths: one mean, however it is cut"""
    return as_expected(cell, cell.grid(2), Normalization.GLOBAL, mtp=2)


@check()
def step_tokens_per_token(cell: Cell) -> str:
    """The same with calculate_per_token_loss"""
    return as_expected(cell, cell.grid(2), Normalization.GLOBAL, calculate_per_token_loss=True)


@check()
def soft_objective(cell: Cell) -> str:
    """loss=soft_cross_entropy, two depths: against the policy's distribution, across the cut"""
    with trained_for("soft_cross_entropy"):
        return as_expected(cell, cell.grid(2), Normalization.GLOBAL, mtp=2, losses_of=soft_cross_entropies)


@check()
def zero_on_one_rank(cell: Cell) -> str:
    """No trained token on one rank or in one micro-batch: finite, and as expected either way of normalizing"""
    batches = silenced(cell)
    for normalization in (Normalization.RANK, Normalization.GLOBAL):
        as_expected(cell, batches, normalization, mtp=2)
    return "both normalizations"


def silenced(cell: Cell) -> list[list[Item]]:
    """Two micro-batches; some rank has no trained token in the first."""
    batches = cell.grid(2)
    first = batches[0][0]
    if cell.layout.context > 1:
        # Far behind the middle, all depths' positions are on the rank that holds both ends.
        rows = []
        for batch in first.rows:
            mask = torch.zeros_like(batch.loss_mask)
            mask[:, -1] = 1.0
            rows.append(batch.replace(loss_mask=mask))
        batches[0][0] = Item(tuple(rows), first.packed)
    else:
        batches[0][0] = first.masked(keep=0.0)
    return batches


@check()
def zero_everywhere(cell: Cell) -> str:
    """No trained token at all: finite losses and gradients, and none but that of the experts' own loss"""
    batches = [[item.masked(keep=0.0) for item in step] for step in cell.grid(2)]
    for per_token in (False, True):
        for known in (cell.tokens(batches, 1), contextlib.nullcontext()):
            with known:
                outcome = cell.trainer(calculate_per_token_loss=per_token).run(batches)
            expect(not any(outcome.tracked), f"tracked losses {outcome.tracked}")
            for name, value in outcome.gradients.items():
                expect(bool(torch.isfinite(value).all()), f"gradient of {name} is not finite")
                expect(bool(cell.layout.model.get("moe")) or not value.any(), f"gradient of {name} is not zero")
    return "finite"
