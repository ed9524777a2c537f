"""The gradients that one process would find that holds the whole model and all batches.

The loss is a weighted sum of every position's cross entropy; how the weights follow from the normalization is written
out here, so any layout and any cut into micro-batches has one expected gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from ..models import Batch
from ..reference import cross_entropies, head_weight, roll, run_mtp, run_trunk
from .batches import Grid, Item, owner
from .layouts import Layout

LossesOf = Callable[..., list[tuple[torch.Tensor, torch.Tensor]]]


class Normalization(Enum):
    """By what the summed cross entropy of a depth is divided."""

    RANK = "rank"  # upstream's: a mean per micro-batch and rank, averaged over both
    PER_TOKEN = "per_token"  # the same with calculate_per_token_loss: each mean counts as its rank's main tokens
    GLOBAL = "global"  # one mean over all trained tokens of the step


def depth_masks(batch: Batch, depths: int) -> list[torch.Tensor]:
    """Per depth: the mask [b, s], in fp64, of the positions whose prediction is trained."""
    masks, mask = [], batch.loss_mask.double()
    for _ in range(depths):
        mask = roll(mask)
        masks.append(mask)
    return masks


def owners(item: Item, layout: Layout) -> list[torch.Tensor]:
    """Per batch of the item: the context-parallel rank [s] of every position."""
    lengths = [batch.input_ids.shape[1] for batch in item.rows]
    held_by = [owner(n, layout.context) if layout.context > 1 else torch.zeros(n).long() for n in lengths]
    return [by.to(batch.input_ids.device) for by, batch in zip(held_by, item.rows, strict=True)]


def counts(grid: Grid, depths: int) -> list[int]:
    """Trained tokens of the whole step, per depth."""
    masks = [depth_masks(batch, depths) for step in grid for item in step for batch in item.rows]
    return [int(sum(float(m.sum()) for m in depth)) for depth in zip(*masks, strict=True)]


def token_weights(
    grid: Grid, item: Item, layout: Layout, depths: int, normalization: Normalization
) -> list[list[torch.Tensor]]:
    """Per batch of ``item`` and depth: the weight [b, s] of every position's cross entropy in the step's loss."""
    masks = [depth_masks(batch, depths) for batch in item.rows]
    if normalization is Normalization.GLOBAL:
        totals = counts(grid, depths)
        return [[mask / max(total, 1) for mask, total in zip(of, totals, strict=True)] for of in masks]
    ranks = len(grid) * layout.data * layout.context
    main_total = sum(float(batch.loss_mask.sum()) for step in grid for other in step for batch in other.rows)
    weights = [[torch.zeros_like(mask) for mask in of] for of in masks]
    held_by = owners(item, layout)
    for rank in range(layout.context):
        held = [(by == rank).double() for by in held_by]
        main = sum(float((b.loss_mask * mine).sum()) for b, mine in zip(item.rows, held, strict=True))
        share = 1 / ranks if normalization is Normalization.RANK else main / max(main_total, 1)
        for depth in range(depths):
            count = sum(float((of[depth] * mine).sum()) for of, mine in zip(masks, held, strict=True))
            for i, mine in enumerate(held):
                weights[i][depth] += masks[i][depth] * mine * share / max(count, 1)
    return weights


@dataclass(frozen=True)
class Expected:
    """``gradients`` of the step's MTP loss by parameter name, in fp64; ``losses``: mean per trained token, by depth."""

    gradients: dict[str, torch.Tensor]
    losses: list[float]


def expected(
    model: Any,
    grid: Grid,
    layout: Layout,
    normalization: Normalization,
    *,
    detach_encoder: bool = False,
    losses_of: LossesOf = cross_entropies,
) -> Expected:
    """What the step of a layout must come to.

    Args:
        model: the whole one, which nobody has patched; built where every parallel size is one.
        grid: the step's batches.
        layout: how ranks cut them, which matters for the mean per rank.
        normalization: which mean.
        detach_encoder: whether the block's entrance is cut.
        losses_of: the loss of every position, per depth.
    """
    from megatron.core.transformer.moe.router import MoEAuxLossAutoScaler

    model = model.double()
    depths, scale = model.config.mtp_num_layers, model.config.mtp_loss_scaling_factor / model.config.mtp_num_layers
    named = dict(model.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    items = [item for step in grid for item in step]
    # The experts' auxiliary loss is attached to the graph: a mean per micro-batch and replica, or with a per-token loss
    # a sum over their tokens, which Megatron too divides by the main loss's.
    main_tokens = sum(float(batch.loss_mask.sum()) for item in items for batch in item.rows)
    divisor = main_tokens if model.config.calculate_per_token_loss else len(items)
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1) / divisor)
    summed = [0.0] * depths
    for item in items:
        total: Any = 0.0
        for batch, of in zip(item.rows, token_weights(grid, item, layout, depths, normalization), strict=True):
            losses = losses_of(model, batch, detach_encoder=detach_encoder)
            for depth, ((loss, mask), weight) in enumerate(zip(losses, of, strict=True)):
                total = total + (loss * weight).sum() * scale
                summed[depth] += float((loss * mask).sum())
        for name, gradient in zip(named, torch.autograd.grad(total, list(named.values()), allow_unused=True)):
            if gradient is not None:
                sums[name] += gradient
    means = [loss / max(count, 1) for loss, count in zip(summed, counts(grid, depths), strict=True)]
    return Expected(sums, means)


def soft_cross_entropies(model: Any, batch: Batch, *, detach_encoder: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """As ``cross_entropies``, against the distribution that the policy itself has for the same token."""
    hidden, call = run_trunk(model, batch)
    head = head_weight(model).t()
    policy, mask, result = (hidden.detach() @ head).softmax(-1), batch.loss_mask.double(), []
    for states in run_mtp(model, batch, hidden, call, detach_encoder):
        mask, policy = roll(mask), torch.cat([policy[1:], policy[:1]])  # [s, b, v]
        result.append((-(policy * (states @ head).log_softmax(-1)).sum(-1).t(), mask))
    return result
