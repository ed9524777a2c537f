"""Acceptance over training: one recipe, four ways to treat the MTP layer, each on one GPU.

    python -m benchmarks.gpu.upstream.acceptance --model MODEL --data DATA --examples VERL_CHECKOUT --gpus 0,1,2,3

Upstream's hybrid script with one draft a verify step, so that the acceptance that SGLang serves (of that draft) and the
one that training predicts (how often the MTP layer's first choice is the token that the policy sampled) are the same
quantity; and one update a step, so that both are of the same weights. The plugin is installed in all four.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any, Final

from . import hybrid, recipe, scripts, session

VARIANTS: Final = {
    variant.name: variant
    for variant in (
        recipe.Variant("frozen", "MTP layer frozen", overrides={f"{recipe.MTP}.enable_train": False}),
        recipe.Variant("trained", "trained, detached"),
        recipe.Variant("attached", "trained, not detached", overrides={f"{recipe.MTP}.detach_encoder": False}),
        recipe.Variant(
            "soft", "trained, detached, soft objective", overrides={f"+{recipe.MTP}.plugin.loss": "soft_cross_entropy"}
        ),
    )
}


@dataclass(frozen=True)
class Sizes(recipe.Sizes):
    """Enough steps to see the policy move away from a frozen MTP layer."""

    steps: int = 60
    prompts: int = 32
    mini_batch: int = 32
    learning_rate: float = 2e-5
    draft_steps: int = 1
    mtp_loss_scale: float = 0.1  # the script's own


def variables(sizes: recipe.Sizes, files: recipe.Files) -> dict[str, str]:
    assert isinstance(sizes, Sizes)
    return hybrid.variables(sizes, files) | {"MTP_LOSS_SCALING_FACTOR": str(sizes.mtp_loss_scale)}


def overrides(
    variant: recipe.Variant, sizes: recipe.Sizes, files: recipe.Files, options: argparse.Namespace
) -> dict[str, Any]:
    return hybrid.overrides(variant, sizes, files, options)


PLAN: Final = session.Plan("acceptance", scripts.HYBRID, VARIANTS, variables, overrides)


def main() -> int:
    sizes = Sizes()
    options = session.arguments(PLAN, sizes).parse_args()
    return session.run(PLAN, options, session.sizes_of(options, sizes), gpus_each=1)


if __name__ == "__main__":
    sys.exit(main())
