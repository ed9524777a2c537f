"""The soft objectives: the draft head against the policy's own distribution, depth by depth."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from .. import reference as plain_torch
from ..models import Batch
from ..world import World
from .registry import Kind, check, expect_close, is_mtp
from .special import packed_batch, refused


@contextlib.contextmanager
def trained_for(loss: str) -> Iterator[None]:
    """The plugin's setting ``loss``, for a while."""
    import verl_mtp_plugin
    from verl_mtp_plugin import runtime

    before = runtime.settings()
    verl_mtp_plugin.activate(dataclasses.replace(before, loss=loss))
    try:
        yield
    finally:
        verl_mtp_plugin.activate(before)


def soft_loss(model: Any, batch: Batch, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed over depths' trained tokens, and the tokens of depth 1: what the draft at t and the policy at t + d say
    of the same token, [s, b, v] each in fp64."""
    hidden, call = plain_torch.run_trunk(model, batch)
    head = plain_torch.head_weight(model).double()
    policy = (hidden.detach().double() @ head.t()).softmax(-1)
    mask, total, tokens = batch.loss_mask.double(), torch.zeros(()).double(), None
    for states in plain_torch.run_mtp(model, batch, hidden, call, False):
        mask = plain_torch.roll(mask)
        policy = torch.cat([policy[1:], policy[:1]])
        draft = (states.double() @ head.t()).log_softmax(-1)
        if kind == "soft_cross_entropy":
            each = -(policy * draft).sum(-1)
        else:
            each = 0.5 * (policy - draft.exp()).abs().sum(-1)
        total = total + (each * mask.t()).sum() / mask.sum()
        tokens = mask.sum() if tokens is None else tokens
    assert tokens is not None
    return total, tokens


def as_reference(world: World, kind: str, packed: bool = False, **model: Any) -> str:
    """Gradients of everything against the loss above; packed sequences count as rows of their own."""
    subject = world.build(packed=packed, **model)
    batch = world.batch
    parts = [batch]
    if packed:
        batch, parts = packed_batch(world)
    summed = [soft_loss(subject, part, kind) for part in parts]
    total = sum(loss * tokens for loss, tokens in summed) / sum(tokens for _, tokens in summed)
    total = total * subject.config.mtp_loss_scaling_factor / subject.config.mtp_num_layers
    named = dict(subject.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    expected = {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)
    }
    with trained_for(kind):
        outcome = world.train(world.asked(packed=packed, **model), batch)
    assert any(value.any() for name, value in expected.items() if is_mtp(name))
    # Total variation's gradient jumps where p = q, and bf16 logits round some of such tokens over to the other side.
    rounded = kind == "total_variation" and world.device.type == "cuda"
    tolerance = 5 * world.tolerance if rounded else world.tolerance
    return expect_close(outcome.gradients, expected, tolerance, "gradient of")


@check(Kind.PLUGIN)
def objective_soft_cross_entropy(world: World) -> str:
    """loss=soft_cross_entropy, two depths: all gradients as the reference, against the policy's distribution"""
    return as_reference(world, "soft_cross_entropy", mtp=2)


@check(Kind.PLUGIN)
def objective_total_variation(world: World) -> str:
    """loss=total_variation, two depths: all gradients as the reference, against the policy's distribution"""
    return as_reference(world, "total_variation", mtp=2)


@check(Kind.PLUGIN)
def objective_packed(world: World) -> str:
    """loss=soft_cross_entropy with packed sequences: as the reference on each alone; on megatron-core 0.15 an error"""
    if world.megatron_core < (0, 16):
        with trained_for("soft_cross_entropy"):
            return refused(world, world.asked(packed=True), packed_batch(world)[0])
    return as_reference(world, "soft_cross_entropy", packed=True)
