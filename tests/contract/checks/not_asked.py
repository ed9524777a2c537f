"""Models on which nobody asked for MTP training, so that upstream's ``_postprocess`` runs on them as it is."""

from __future__ import annotations

import torch.nn.functional as F

from .. import reference as plain_torch
from ..world import World
from .labels_none import logits_only
from .registry import check, expect_close, expect_same


@check()
def labels_none_not_asked(world: World) -> str:
    """labels=None on a model with MTP that verl has not patched: as labels_none_train"""
    return logits_only(world, eval_mode=False, grad=True, asked=False)


@check()
def labels_none_zero_depths(world: World) -> str:
    """labels=None with mtp_num_layers=0, as verl sets it to turn MTP off: logits of the model without MTP"""
    outcome = world.run(world.build(mtp=0), labels=None, main=1.0)
    expect_same(outcome.output, world.plain().output, "logits")
    return "right logits"


@check()
def model_without_mtp(world: World) -> str:
    """A model without MTP is left alone: logits, or the loss [b, s] with labels, as plain PyTorch computes them"""
    model, batch = world.build(mtp=None), world.batch
    hidden, _ = plain_torch.run_trunk(world.build(mtp=None), batch)
    logits = (hidden @ plain_torch.head_weight(model).t()).transpose(0, 1)  # [b, s, v]
    loss = F.cross_entropy(logits.double().transpose(1, 2), batch.labels, reduction="none")  # [b, s]
    actual = {"logits": world.run(model, labels=None).output, "loss": world.train(model).output}
    return expect_close(actual, {"logits": logits.detach(), "loss": loss.detach()}, world.tolerance, "output")
