"""MTP trained on a trunk of which all or some parameters are frozen, under every kind of activation recompute.

``python -m tests.stack.frozen_worker VERL MEGATRON_CORE on|off``, the last one: the plugin. Prints, by case, what went
wrong, or how far the gradients are from those of the same case without recompute, and how many there are; and what
:mod:`.detach_checks` found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.contract import process
from tests.contract.checks.special import BLOCK, RECOMPUTE, SELECTIVE
from tests.contract.world import World

from . import detach_checks

METHODS: dict[str, dict[str, Any]] = {"none": {}, "uniform": RECOMPUTE, "block": BLOCK, "selective": SELECTIVE}
#: Which parameters are trained.
TRAINED: dict[str, Callable[[str], bool]] = {
    "mtp": lambda name: name.startswith("mtp."),
    "mtp_and_embedding": lambda name: name.startswith(("mtp.", "embedding.")),
    "last_mtp_layer": lambda name: name.startswith("mtp.layers.1."),
    "some_of_mtp": lambda name: name.startswith("mtp.") and ".mlp.linear_fc" in name,  # as adapters on these
    "mtp_and_last_layer": lambda name: name.startswith(("mtp.", "decoder.layers.1.mlp.")),
}


def cases() -> Iterator[tuple[str, str, bool]]:
    """What is trained, how it is recomputed, and whether the encoder is detached."""
    for trained in TRAINED:
        for method in METHODS:
            yield trained, method, False
    yield "mtp", "uniform", True
    yield "mtp_and_last_layer", "uniform", True


def gradients(world: World, wanted: Callable[[str], bool], method: str, *, detach: bool) -> dict[str, torch.Tensor]:
    """Of the MTP loss, by name, for what is trained."""
    model = world.asked(detach_encoder=detach, mtp=2, **METHODS[method])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))
    world.train(model)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compared(
    world: World, expected: dict[str, torch.Tensor], trained: str, method: str, *, detach: bool
) -> str | list[float]:
    """The largest difference, relative to each parameter's gradient, and how many gradients there are."""
    try:
        found = gradients(world, TRAINED[trained], method, detach=detach)
    except Exception as error:  # which is what the test looks at
        return f"{type(error).__name__}: {error}"
    wanted = {name for name, gradient in expected.items() if TRAINED[trained](name) and bool(gradient.any())}
    lost = sorted(name for name in wanted if name not in found or not bool(found[name].any()))
    if lost:
        return f"no gradient for {len(lost)} of {len(wanted)}: {lost[0]}"
    apart = [float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in wanted]
    return [max(apart), len(wanted)]


def main() -> None:
    verl, megatron_core, plugin = sys.argv[1:]
    world, _, _ = process.prepare(verl, megatron_core, plugin=plugin == "on", device="cpu")
    # The gradients where nothing is frozen and nothing recomputed.
    whole = {detach: gradients(world, lambda name: True, "none", detach=detach) for detach in (False, True)}
    found = {
        f"{trained} {method} {'detached' if detach else 'attached'}": compared(
            world, whole[detach], trained, method, detach=detach
        )
        for trained, method, detach in cases()
    }
    print("\n=> " + json.dumps({"frozen": found, "detached": detach_checks.checks(world)}))


if __name__ == "__main__":
    main()
