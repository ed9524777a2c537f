"""``mtp.detach_encoder``: the MTP loss trains the MTP block and nothing else."""

from __future__ import annotations

from typing import Any

from ..reference import reference
from ..world import World
from .registry import check, expect_all_same, expect_close, is_mtp, only
from .training import gradients_as_reference


def _isolated(world: World, **model: Any) -> str:
    outcome = world.train(world.asked(detach_encoder=True, **model), main=1.0)
    plain = world.plain(main=1.0, **model)
    expect_all_same(outcome.gradients, plain.gradients, "gradient of")
    return f"{len(plain.gradients)} gradients bit-equal"


@check()
def detach_mtp_gradients(world: World) -> str:
    """detach_encoder: gradients of every mtp.* parameter as the reference"""
    expected = reference(world.build(), world.batch, detach_encoder=True).gradients
    outcome = world.train(world.asked(detach_encoder=True))
    names = [name for name in expected if is_mtp(name)]
    return expect_close(outcome.gradients, only(expected, names), world.tolerance, "gradient of")


@check()
def detach_isolates(world: World) -> str:
    """detach_encoder: trunk, embedding and lm_head have the gradients of the model without MTP, bit for bit"""
    return _isolated(world)


@check()
def detach_isolates_tied(world: World) -> str:
    """detach_encoder with tied weights: the same, the shared embedding included"""
    return _isolated(world, tied=True)


@check()
def detach_depths(world: World) -> str:
    """detach_encoder with two depths: cut at the block's entrance only, so depth 2 still trains depth 1's layer"""
    return gradients_as_reference(world, detach=True, mtp=2)


@check()
def detach_depths_isolates(world: World) -> str:
    """detach_encoder with two depths: everything outside the MTP block as without MTP, bit for bit"""
    outcome = world.train(world.asked(detach_encoder=True, mtp=2), main=1.0)
    expect_all_same(outcome.gradients, world.plain(main=1.0).gradients, "gradient of")
    return "bit-equal"
