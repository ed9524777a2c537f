"""Without labels: log-prob recompute. The model must be the one without MTP, bit for bit, and as cheap."""

from __future__ import annotations

from typing import Any

import torch

from ..world import World
from .registry import check, expect_all_same, expect_no_mtp, expect_same


def logits_only(world: World, *, eval_mode: bool, grad: bool, asked: bool = True, **model: Any) -> str:
    with torch.set_grad_enabled(grad):
        subject = world.asked(**model) if asked else world.build(**model)
        outcome = world.run(subject.train(not eval_mode), labels=None, main=1.0)
        plain = world.plain(main=1.0, eval_mode=eval_mode, **model)
    expect_same(outcome.output, plain.output, "logits")
    expect_no_mtp(outcome)
    expect_all_same(outcome.gradients, plain.gradients, "gradient of")
    return f"{outcome.mtp_calls} MTP calls, {outcome.head_calls} vocabulary projection"


@check()
def labels_none_train(world: World) -> str:
    """labels=None, train mode: logits and gradients of the model without MTP; no MTP call, loss or metric"""
    return logits_only(world, eval_mode=False, grad=True)


@check()
def labels_none_train_no_grad(world: World) -> str:
    """labels=None, train mode under no_grad: the same"""
    return logits_only(world, eval_mode=False, grad=False)


@check()
def labels_none_eval(world: World) -> str:
    """labels=None, eval mode: the same"""
    return logits_only(world, eval_mode=True, grad=True)


@check()
def labels_none_eval_no_grad(world: World) -> str:
    """labels=None, eval mode under no_grad (verl's log-prob recompute): the same"""
    return logits_only(world, eval_mode=True, grad=False)


@check()
def labels_none_tied(world: World) -> str:
    """labels=None with tied weights: the same"""
    return logits_only(world, eval_mode=False, grad=True, tied=True)


@check()
def labels_in_eval_no_grad(world: World) -> str:
    """labels in eval mode under no_grad (verl's engine passes them on recompute too): as cheap as without labels"""
    with torch.no_grad():
        outcome = world.train(world.asked().eval())
        plain = world.plain(eval_mode=True)
    expect_same(outcome.output, plain.output, "logits")
    expect_no_mtp(outcome)
    return "no MTP call, one vocabulary projection"
