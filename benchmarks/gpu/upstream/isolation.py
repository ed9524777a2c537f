"""Whether training the MTP layer changes the policy: the variants of acceptance.py on one and the same rollouts.

    python -m benchmarks.gpu.upstream.isolation --model MODEL --data DATA --examples VERL_CHECKOUT --gpus 0

The first variant generates, and verl's own ``skip.rollout_tq`` keeps its rollouts; the others train on these. Where the
MTP loss is detached, loss, entropy and gradient norm of the policy are those of the frozen run in every step, up to the
GPU's rounding; where it is not, they drift apart.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any, Final

from . import acceptance, recipe, scripts, session

VARIANTS: Final = acceptance.VARIANTS


@dataclass(frozen=True)
class Sizes(acceptance.Sizes):
    steps: int = 5


def variables(sizes: recipe.Sizes, files: recipe.Files) -> dict[str, str]:
    return acceptance.variables(sizes, files) | {"EXPERIMENT_NAME": "isolation"}  # by which the rollouts are found


def overrides(
    variant: recipe.Variant, sizes: recipe.Sizes, files: recipe.Files, options: argparse.Namespace
) -> dict[str, Any]:
    return acceptance.overrides(variant, sizes, files, options) | {
        "skip.rollout_tq.enable": True,
        "skip.rollout_tq.dump_dir": files.work.parent / "rollouts",
        "skip.rollout_tq.steps": f"[{','.join(str(step) for step in range(1, sizes.steps + 1))}]",
    }


PLAN: Final = session.Plan("isolation", scripts.HYBRID, VARIANTS, variables, overrides)


def main() -> int:
    sizes = Sizes()
    options = session.arguments(PLAN, sizes).parse_args()
    chosen = session.sizes_of(options, sizes)
    first, _, others = options.variants.partition(",")
    options.variants = first
    failed = session.run(PLAN, options, chosen, gpus_each=1)
    options.variants = others
    return failed or session.run(PLAN, options, chosen, gpus_each=1)


if __name__ == "__main__":
    sys.exit(main())
