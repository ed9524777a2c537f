"""MTP in a model with hyper-connections (mHC), which megatron-core dev has and no release up to 0.20.

    python -m tests.contract.hyper_connections --verl 0.9.1 --megatron-core 0.19.0

Prints JSON as a cell does, without a check where this megatron-core has no such option. The block computes from the
trunk's streams [s, b, streams * h], a second tensor beside its hidden states.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

import torch

from .cell import outcome_of
from .checks.registry import Check, Kind, expect, expect_all_same, expect_close, is_mtp
from .checks.special import RECOMPUTE
from .process import prepare
from .world import World

OPTIONS: dict[str, Any] = {"enable_hyper_connections": True, "num_residual_streams": 4}
#: The layer's projections of streams [s, b, streams, h]: Megatron's own linear layers, without TransformerEngine's,
#: know no gradient of a weight in four dimensions.
PROJECTIONS = ("e_proj", "h_proj")


def flat_projections(model: Any) -> Any:
    """Let the local spec's projections see three dimensions, as many as they can go back through."""
    for layer in model.mtp.layers if getattr(model, "mtp", None) is not None else ():
        for name in PROJECTIONS:
            _flatten(getattr(layer, name))
    return model


def _flatten(projection: torch.nn.Module) -> None:
    shapes: list[torch.Size] = []

    def before(module: Any, args: Any) -> Any:
        shapes.append(args[0].shape)
        return args[0].flatten(1, -2), *args[1:]

    def after(module: Any, args: Any, output: Any) -> Any:
        return output[0].unflatten(1, shapes.pop()[1:-1]), *output[1:]

    projection.register_forward_pre_hook(before)
    projection.register_forward_hook(after)


def asked(world: World, **kwargs: Any) -> Any:
    """As :meth:`World.asked`, with hyper-connections and two depths."""
    return flat_projections(world.asked(mtp=2, **OPTIONS, **kwargs))


def upstreams_own(world: World, **options: Any) -> dict[str, torch.Tensor]:
    """The gradients of megatron-core's own MTP loss, on a model that nobody has asked anything of."""
    model = flat_projections(world.build(mtp=2, **OPTIONS, **options))
    return world.train(model).gradients


def mhc_detach_isolates(world: World) -> str:
    """detach_encoder: trunk, embedding and lm_head as without MTP, bit for bit"""
    outcome = world.train(asked(world, detach_encoder=True), main=1.0)
    plain = world.plain(main=1.0, **OPTIONS)
    expect_all_same(outcome.gradients, plain.gradients, "gradient of")
    return f"{len(plain.gradients)} gradients bit-equal"


def mhc_detach_trains(world: World) -> str:
    """detach_encoder: the MTP block's gradients as with megatron-core's own mtp_detach_heads"""
    return _as_upstream(world, upstreams_own(world, mtp_detach_heads=True), detach_encoder=True)


def mhc_trains(world: World) -> str:
    """The MTP block's gradients as megatron-core's own, and the trunk gets some"""
    found = world.train(asked(world)).gradients
    expect(any(bool(g.any()) for n, g in found.items() if n.startswith("decoder.")), "no gradient reached the trunk")
    return _as_upstream(world, upstreams_own(world))


def mhc_recompute(world: World) -> str:
    """Full activation recompute with detach_encoder: as without"""
    return _as_upstream(world, upstreams_own(world, mtp_detach_heads=True), detach_encoder=True, **RECOMPUTE)


def _as_upstream(world: World, expected: dict[str, torch.Tensor], **kwargs: Any) -> str:
    found = world.train(asked(world, **kwargs)).gradients
    mtp = {name: gradient for name, gradient in expected.items() if is_mtp(name)}
    return expect_close(found, mtp, 10 * world.tolerance, "gradient of")


CHECKS = tuple(
    Check(function.__name__, Kind.PLUGIN, (function.__doc__ or "").strip(), function)
    for function in (mhc_detach_isolates, mhc_detach_trains, mhc_trains, mhc_recompute)
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.contract.hyper_connections")
    parser.add_argument("--verl", required=True)
    parser.add_argument("--megatron-core", required=True)
    options = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        world, _, _ = prepare(options.verl, options.megatron_core, plugin=True, device="cpu")
        from megatron.core.transformer.transformer_config import TransformerConfig

        known = OPTIONS.keys() <= TransformerConfig.__dataclass_fields__.keys()
        outcomes = []
        for check in CHECKS if known else ():
            ok, detail = outcome_of(check, world)
            outcomes.append({"name": check.name, "ok": ok, "detail": detail})
    print(json.dumps({"checks": outcomes}))


if __name__ == "__main__":
    main()
