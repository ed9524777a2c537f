"""With labels: logits out, and the MTP loss attached to the graph, as the reference computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..models import Batch
from ..reference import reference
from ..world import World
from .registry import check, expect, expect_close, expect_losses, expect_same, is_mtp, only


def gradients_as_reference(
    world: World,
    batch: Batch | None = None,
    *,
    detach: bool = False,
    besides: Mapping[str, Any] | None = None,
    **model: Any,
) -> str:
    """Every gradient of the MTP loss, and the tracked losses, against the reference, built without ``besides``."""
    batch = batch or world.batch
    expected = reference(world.build(**model), batch, detach_encoder=detach)
    outcome = world.train(world.asked(detach_encoder=detach, **model, **(besides or {})), batch)
    close = expect_close(outcome.gradients, expected.gradients, world.tolerance, "gradient of")
    return f"{close}, {expect_losses(outcome, expected.losses, 10 * world.tolerance)}"


@check()
def train_logits(world: World) -> str:
    """labels given: logits [b, s, v] of the model without MTP, bit for bit; labels and mask are not written to"""
    labels, mask = world.batch.labels.clone(), world.batch.loss_mask.clone()
    outcome = world.train(world.asked())
    expect_same(outcome.output, world.plain().output, "logits")
    expect_same(world.batch.labels, labels, "labels")
    expect_same(world.batch.loss_mask, mask, "loss mask")
    return f"{outcome.mtp_calls} MTP calls, {outcome.head_calls} vocabulary projections"


@check()
def train_mtp_gradients(world: World) -> str:
    """Gradients of every mtp.* parameter as the reference"""
    expected = reference(world.build(), world.batch).gradients
    names = [name for name in expected if is_mtp(name)]
    dead = [name for name in names if not expected[name].any()]
    expect(not dead, f"the reference leaves {dead} without a gradient")
    return expect_close(world.train(world.asked()).gradients, only(expected, names), world.tolerance, "gradient of")


@check()
def train_trunk_gradients(world: World) -> str:
    """Without detach_encoder the MTP loss trains trunk and embedding, as the reference"""
    expected = reference(world.build(), world.batch).gradients
    names = [name for name in expected if not is_mtp(name) and not name.startswith("output_layer.")]
    return expect_close(world.train(world.asked()).gradients, only(expected, names), world.tolerance, "gradient of")


@check()
def train_lm_head_isolated(world: World) -> str:
    """Untied lm_head: with a main loss, its gradient is that of the model without MTP, bit for bit"""
    outcome, plain = world.train(world.asked(), main=1.0), world.plain(main=1.0)
    expect_same(outcome.gradients["output_layer.weight"], plain.gradients["output_layer.weight"], "lm_head gradient")
    return "bit-equal"


@check()
def train_metric(world: World) -> str:
    """Megatron's MTP tracker holds the reference loss"""
    return expect_losses(world.train(world.asked()), reference(world.build(), world.batch).losses, world.tolerance * 10)


@check()
def train_tied(world: World) -> str:
    """Tied weights: all gradients as the reference, the embedding's without the head's share"""
    return gradients_as_reference(world, tied=True)


@check()
def train_depths(world: World) -> str:
    """Two depths: all gradients and both losses as the reference"""
    return gradients_as_reference(world, mtp=2)


@check()
def train_mask_partial(world: World) -> str:
    """A loss mask with holes: as the reference"""
    mask = torch.ones_like(world.batch.loss_mask)
    mask[:, ::3] = 0
    mask[0, 5:8] = 0
    return gradients_as_reference(world, world.batch.replace(loss_mask=mask))


@check()
def train_mask_none(world: World) -> str:
    """No loss mask: as the reference with every token trained"""
    every = world.batch.replace(loss_mask=torch.ones_like(world.batch.loss_mask))
    expected = reference(world.build(), every)
    outcome = world.run(world.asked(), labels=every.labels, loss_mask=None)
    close = expect_close(outcome.gradients, expected.gradients, world.tolerance, "gradient of")
    return f"{close}, {expect_losses(outcome, expected.losses, 10 * world.tolerance)}"


@check()
def train_mask_zero(world: World) -> str:
    """No trained token: loss, metric and gradients finite, and the gradients zero"""
    outcome = world.train(world.asked(), world.batch.replace(loss_mask=torch.zeros_like(world.batch.loss_mask)))
    for name, value in outcome.gradients.items():
        expect(bool(torch.isfinite(value).all()), f"gradient of {name} is not finite")
        expect(not value.any(), f"gradient of {name} is not zero")
    tracked = outcome.tracker.get("loss_values", outcome.tracker.get("values"))
    expect(tracked is None or bool(torch.isfinite(tracked).all()), "the tracked loss is not finite")
    return "finite"


@check()
def train_per_token_loss(world: World) -> str:
    """calculate_per_token_loss: scaled by original over rolled tokens, as the reference"""
    return gradients_as_reference(world, calculate_per_token_loss=True)


@check()
def train_loss_scale(world: World) -> str:
    """The schedule's loss scale (MTPLossAutoScaler.set_loss_scale) multiplies the gradients"""
    from megatron.core.transformer.multi_token_prediction import MTPLossAutoScaler

    expected = {name: 2.5 * value for name, value in reference(world.build(), world.batch).gradients.items()}
    MTPLossAutoScaler.set_loss_scale(torch.tensor(2.5, device=world.device))
    try:
        outcome = world.train(world.asked())
    finally:
        MTPLossAutoScaler.set_loss_scale(torch.tensor(1.0, device=world.device))
    return expect_close(outcome.gradients, expected, world.tolerance, "gradient of")
