"""Upstream's hybrid MTP example (GRPO, Megatron, SGLang) on one GPU, with the plugin, without it, and without MTP.

    python -m benchmarks.gpu.upstream.hybrid --model MODEL --data DATA --examples VERL_CHECKOUT

The script is run as it is: sizes and paths are its own environment variables, the rest are overrides behind it. Where
the plugin is turned off, a line that the installed verl refuses is left out of a copy, and the default that its
reward manager needs is given; results list both. With several GPUs the variants run side by side, one on each.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from . import recipe, scripts, session

VARIANTS: Final = {
    variant.name: variant
    for variant in (
        recipe.Variant("plugin", "plugin installed"),
        recipe.Variant("released", "verl as released", plugin="off"),
        recipe.Variant("no_mtp", "without MTP", plugin="off", mtp=False),
    )
}


def variables(sizes: recipe.Sizes, files: recipe.Files) -> dict[str, str]:
    """The script's own."""
    chosen = {
        "NNODES": 1,
        "NGPUS_PER_NODE": 1,
        "TRAIN_BATCH_SIZE": sizes.prompts,
        "PPO_MINI_BATCH_SIZE": sizes.mini_batch,
        "MAX_PROMPT_LENGTH": sizes.prompt_tokens,
        "MAX_RESPONSE_LENGTH": sizes.response_tokens,
        "PPO_MAX_TOKEN_LEN_PER_GPU": sizes.tokens_per_gpu,
        "ACTOR_LR": sizes.learning_rate,
        "ACTOR_TP": 1,
        "ACTOR_PP": 1,
        "ACTOR_CP": 1,
        "ROLLOUT_TP": 1,
        "ROLLOUT_N": sizes.responses,
        "ROLLOUT_GPU_MEM_UTIL": sizes.memory,
        "TOTAL_TRAINING_STEPS": sizes.steps,
        "TOTAL_EPOCHS": 100,
        "TEST_FREQ": -1,
        "SAVE_FREQ": -1,
        "TRAIN_FILE": files.data / "train.parquet",
        "VAL_FILE": files.data / "test.parquet",
    }
    return {name: str(value) for name, value in chosen.items()}


def overrides(
    variant: recipe.Variant, sizes: recipe.Sizes, files: recipe.Files, options: argparse.Namespace
) -> dict[str, Any]:
    """What the script has no variable for."""
    chosen = recipe.machine(files, options) | recipe.rollout(sizes)
    chosen |= {
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 2,
        "data.seed": 1,
        "reward.reward_kwargs.overlong_buffer_cfg.len": sizes.buffer_tokens,
        f"{recipe.A}.actor.optim.lr_warmup_steps": 0,
    }
    return chosen | recipe.of_variant(variant, sizes)


PLAN: Final = session.Plan("hybrid", scripts.HYBRID, VARIANTS, variables, overrides)


def main() -> int:
    sizes = recipe.Sizes()
    options = session.arguments(PLAN, sizes).parse_args()
    return session.run(PLAN, options, session.sizes_of(options, sizes), gpus_each=1)


if __name__ == "__main__":
    sys.exit(main())
