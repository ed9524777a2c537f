"""An optimizer step cut into micro-batches: with the step's own token count, the cut does not matter."""

from __future__ import annotations

from typing import Any

import torch

from ..models import Batch, random_batch
from ..world import World, mtp_tracker
from .registry import Kind, check, expect, expect_close, is_mtp, only

ROWS = 6


def _batch(world: World) -> Batch:
    """Rows with very different numbers of trained tokens, one with none."""
    batch = random_batch(world.device, rows=ROWS, seed=9)
    mask = torch.zeros_like(batch.loss_mask)
    for row, trained in enumerate((12, 1, 5, 0, 9, 3)):
        mask[row, 14 - trained : 14] = 1.0
    return batch.replace(loss_mask=mask)


def _step(world: World, cuts: list[slice], counted: bool, **config: Any) -> dict[str, torch.Tensor]:
    """Gradients after the micro-batches of a step, as Megatron's schedule and its gradient finalisation scale them."""
    from megatron.core.transformer.multi_token_prediction import MTPLossAutoScaler

    from verl_mtp_plugin.training.step.normalization import StepTokens, step_tokens

    batch, model = _batch(world), world.asked(**config)
    per_token = bool(config.get("calculate_per_token_loss"))
    main_tokens = float(batch.loss_mask.sum())
    per_depth = tuple(float(batch.loss_mask[:, 1 + depth :].sum()) for depth in range(2))
    tokens = StepTokens(per_depth, ranks=1, divisor=main_tokens) if counted else None
    model.zero_grad(set_to_none=True)
    mtp_tracker().clear()  # made for as many depths as whoever came first had
    MTPLossAutoScaler.set_loss_scale(torch.ones((), device=world.device) / (1 if per_token else len(cuts)))
    try:
        with step_tokens(tokens):
            for cut in cuts:
                part = {
                    name: getattr(batch, name)[cut] for name in ("input_ids", "position_ids", "labels", "loss_mask")
                }
                output = model(**batch.replace(**part).inputs(), labels=part["labels"], loss_mask=part["loss_mask"])
                (output * 0.0).sum().backward()
    finally:
        MTPLossAutoScaler.set_loss_scale(torch.ones((), device=world.device))
    scale = 1.0 / main_tokens if per_token else 1.0
    return {name: p.grad * scale for name, p in model.named_parameters() if p.grad is not None}


def _cut_does_not_matter(world: World, **config: Any) -> str:
    whole = [slice(0, ROWS)]
    uneven = [slice(0, 1), slice(1, 3), slice(3, 4), slice(4, ROWS)]
    expected = _step(world, whole, True, mtp=2, **config)
    names = [name for name in expected if is_mtp(name)]
    close = expect_close(
        _step(world, uneven, True, mtp=2, **config), only(expected, names), world.tolerance, "gradient"
    )
    plain = _step(world, uneven, False, mtp=2, **config)
    differs = max(float((plain[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in names)
    if not config:  # per token, upstream weights micro-batches by their tokens
        expect(differs > 0.02, f"uncounted, the cut makes no difference either ({differs:.2g}): this shows nothing")
    return f"{close}; without the step's count up to {differs:.1%} off"


@check(Kind.PLUGIN)
def step_plain(world: World) -> str:
    """Two depths, uneven micro-batches, one without trained tokens: the gradient of the whole mini-batch at once"""
    return _cut_does_not_matter(world)


@check(Kind.PLUGIN)
def step_per_token(world: World) -> str:
    """The same with calculate_per_token_loss"""
    return _cut_does_not_matter(world, calculate_per_token_loss=True)
