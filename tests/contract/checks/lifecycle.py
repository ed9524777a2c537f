"""Patching twice, taking it back, and the plugin's own coming and going."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F

from .. import reference as plain_torch
from ..world import World
from .registry import Kind, check, expect, expect_close, expect_losses, expect_no_mtp, expect_same


def _trains_right(world: World, model: Any) -> str:
    expected = plain_torch.reference(world.build(), world.batch)
    outcome = world.train(model)
    expect_same(outcome.output, world.plain().output, "logits")
    close = expect_close(outcome.gradients, expected.gradients, world.tolerance, "gradient of")
    expect_losses(outcome, expected.losses, 10 * world.tolerance)
    return close


def _gives_loss(world: World, model: Any) -> str:
    """labels give the loss [b, s] of plain Megatron training, labels=None gives logits."""
    hidden, _ = plain_torch.run_trunk(world.build(), world.batch)
    logits = (hidden @ plain_torch.head_weight(model).t()).transpose(0, 1)  # [b, s, v]
    loss = F.cross_entropy(logits.double().transpose(1, 2), world.batch.labels, reduction="none")  # [b, s]
    with torch.no_grad():
        actual = world.train(model).output
    expect(actual.shape == loss.shape, f"labels give {list(actual.shape)}, not a loss {list(loss.shape)}")
    return expect_close({"loss": actual}, {"loss": loss.detach()}, world.tolerance, "output")


@check()
def patched_twice(world: World) -> str:
    """patch_postprocess called twice does what it does once"""
    model = world.asked()
    world.ask(model)
    close = _trains_right(world, model)
    outcome = world.run(model, labels=None, main=1.0)
    expect_same(outcome.output, world.plain().output, "logits without labels")
    expect_no_mtp(outcome)
    return close


@check()
def unpatched_labels_given(world: World) -> str:
    """unpatch_postprocess: labels give the plain loss [b, s] again"""
    model = world.asked()
    world.withdraw(model)
    return _gives_loss(world, model)


@check()
def unpatched_labels_none(world: World) -> str:
    """unpatch_postprocess: labels=None gives logits"""
    model = world.asked()
    world.withdraw(model)
    expect_same(world.run(model, labels=None).output, world.plain().output, "logits")
    return "right logits"


@check(Kind.PLUGIN)
def patched_twice_unpatched_once(world: World) -> str:
    """patch_postprocess called twice and taken back once: the plain loss again"""
    model = world.asked()
    world.ask(model)
    world.withdraw(model)
    return _gives_loss(world, model)


@check(Kind.PLUGIN)
def patched_before_activation(world: World) -> str:
    """A model that verl patched before the plugin was activated: trains right, right logits without labels"""
    import verl_mtp_plugin

    verl_mtp_plugin.deactivate()
    try:
        model = world.asked()
    finally:
        verl_mtp_plugin.activate()
    close = _trains_right(world, model)
    outcome = world.run(model, labels=None)
    expect_same(outcome.output, world.plain().output, "logits without labels")
    expect_no_mtp(outcome)
    return close


@check(Kind.PLUGIN)
def deactivation_restores(world: World) -> str:
    """deactivate() leaves GPTModel and the MTP layer with megatron-core's own attributes, object for object"""
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer

    import verl_mtp_plugin

    owners = (GPTModel, MultiTokenPredictionLayer)
    patched = (
        (GPTModel, "_postprocess"),
        (MultiTokenPredictionLayer, "_get_embeddings"),
        (MultiTokenPredictionLayer, "_checkpointed_forward"),
    )
    active = [dict(vars(owner)) for owner in owners]
    verl_mtp_plugin.deactivate()
    try:
        bare = [dict(vars(owner)) for owner in owners]
        for owner, name in patched:
            code = getattr(vars(owner)[name], "__code__", None)
            source = sys.modules[owner.__module__].__file__
            expect(code is not None and code.co_filename == source, f"{owner.__name__}.{name} is not megatron-core's")
        verl_mtp_plugin.activate()
        changed = {key for was, owner in zip(bare, owners, strict=True) for key in _changes(was, dict(vars(owner)))}
        expect({name for _, name in patched} == changed, f"activation changes {sorted(changed)}")
        verl_mtp_plugin.deactivate()
        left = {key for was, owner in zip(bare, owners, strict=True) for key in _changes(was, dict(vars(owner)))}
        expect(not left, f"deactivation leaves {sorted(left)} changed")
    finally:
        verl_mtp_plugin.activate()
    now = [set(vars(owner)) for owner in owners]
    expect(now == [set(was) for was in active], "activated again, the classes have other attributes than before")
    return "restored"


def _changes(was: dict[str, Any], now: dict[str, Any]) -> set[str]:
    """The names whose values are not the same object."""
    return {name for name in was.keys() | now.keys() if was.get(name) is not now.get(name)}
