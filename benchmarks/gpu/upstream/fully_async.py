"""Upstream's fully asynchronous MTP example on two or four GPUs, half of them for the trainer, half for rollout.

    python -m benchmarks.gpu.upstream.fully_async --model MODEL --data DATA --examples VERL_CHECKOUT --gpus 0,1

Variants: without MTP, MTP with verl as released, MTP with the plugin; one after the other, or side by side where there
are GPUs for several. The script is run as it is, as in hybrid.py. ``--find-memory 0.9,0.94,0.97`` runs each variant at
these values of gpu_memory_utilization, the lowest first, until one fails.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from typing import Any, Final

from . import recipe, scripts, session, store

VARIANTS: Final = {
    variant.name: variant
    for variant in (
        recipe.Variant("no_mtp", "without MTP", plugin="off", mtp=False),
        recipe.Variant("released", "MTP, verl as released", plugin="off"),
        recipe.Variant("plugin", "MTP, plugin installed"),
    )
}


@dataclass(frozen=True)
class Sizes(recipe.Sizes):
    """``steps`` are weight syncs; each takes ``updates`` mini-batches of ``mini_batch`` prompts."""

    steps: int = 10
    updates: int = 2
    staleness: float = 0.5
    memory: float = 0.8  # the script's own
    tensor_parallel: int = 1  # of the trainer


def variables(sizes: recipe.Sizes, files: recipe.Files) -> dict[str, str]:
    """The script's own."""
    assert isinstance(sizes, Sizes)
    chosen = {
        "GEN_BATCH_SIZE": 1,
        "PPO_MINI_BATCH_SIZE": sizes.mini_batch,
        "N_RESP_PER_PROMPT": sizes.responses,
        "MAX_PROMPT_LENGTH": sizes.prompt_tokens,
        "MAX_RESPONSE_LENGTH": sizes.response_tokens,
        "ACTOR_TP": sizes.tensor_parallel,
        "ACTOR_PP": 1,
        "ACTOR_CP": 1,
        "ROLLOUT_TP": 1,
        "ROLLOUT_GPU_MEM_UTIL": sizes.memory,
        "STALENESS_THRESHOLD": sizes.staleness,
        "TRIGGER_PARAMETER_SYNC_STEP": sizes.updates,
        "REQUIRE_BATCHES": 1,
        "TOTAL_ROLLOUT_STEPS": sizes.steps * sizes.updates * sizes.mini_batch,
        "TOTAL_EPOCHS": 100,
        "TEST_FREQ": -1,
        "SAVE_FREQ": -1,
        "CKPTS_DIR": files.work / "checkpoints",
        "TRAIN_FILE": files.data / "train.parquet",
        "TEST_FILE": files.data / "test.parquet",
    }
    return {name: str(value) for name, value in chosen.items()}


def overrides(
    variant: recipe.Variant, sizes: recipe.Sizes, files: recipe.Files, options: argparse.Namespace
) -> dict[str, Any]:
    """What the script has no variable for."""
    chosen = recipe.machine(files, options) | recipe.rollout(sizes)
    chosen |= {
        # The script's config is found below the current folder, as in a checkout; verl's wheel has it as a package.
        "hydra.searchpath": "[pkg://verl.trainer.config]",
        "ray_kwargs.ray_init.num_cpus": 48,  # logical ones: its actors ask for 28 with two GPUs, 33 with four
        "data.seed": 1,
        "reward_model.reward_kwargs.overlong_buffer_cfg.len": sizes.buffer_tokens,
        f"{recipe.A}.actor.optim.lr": sizes.learning_rate,
        f"{recipe.A}.actor.optim.lr_warmup_steps": 0,
        f"{recipe.A}.actor.ppo_max_token_len_per_gpu": sizes.tokens_per_gpu,
        # The script's own is of the sizes above and smaller than a CUDA graph's prefill needs.
        f"{recipe.A}.rollout.max_num_batched_tokens": sizes.tokens_per_gpu,
    }
    return chosen | recipe.of_variant(variant, sizes)


def with_gpus(gpus: int) -> dict[str, str]:
    """Half of a variant's GPUs for the trainer, half for rollout."""
    half = str(gpus // 2)
    return {"TRAIN_NNODES": "1", "ROLLOUT_NNODES": "1", "TRAIN_NGPUS_PER_NODE": half, "ROLLOUT_NGPUS_PER_NODE": half}


def plan_for(gpus: int) -> session.Plan:
    """The plan for variants of ``gpus`` GPUs each."""

    def all_variables(sizes: recipe.Sizes, files: recipe.Files) -> dict[str, str]:
        return variables(sizes, files) | with_gpus(gpus)

    kind = "fully_async" if gpus == 2 else f"fully_async_{gpus}gpus"
    return session.Plan(kind, scripts.FULLY_ASYNC, VARIANTS, all_variables, overrides, "reward_model")


def find_memory(plan: session.Plan, options: argparse.Namespace, sizes: Sizes, gpus_each: int) -> int:
    """For each variant, the values in order until one fails; each is a result of its own, ``NAME@VALUE``."""
    failed = 0
    for name in options.variants.split(","):
        for value in sorted(float(part) for part in options.find_memory.split(",")):
            options.variants, options.name = name, f"@{value:g}"
            failed += session.run(plan, options, replace(sizes, memory=value), gpus_each)
            found = store.load(options.results / f"{plan.kind}.json").get("variants", {}).get(f"{name}@{value:g}")
            if not found or found["status"]:
                break
    return failed


def main() -> int:
    sizes = Sizes()
    parser = session.arguments(plan_for(2), sizes)
    parser.add_argument("--gpus-each", type=int, default=2, choices=(2, 4), help="for one variant")
    parser.add_argument("--find-memory", default="", help="values of gpu_memory_utilization to try")
    options = parser.parse_args()
    plan = plan_for(options.gpus_each)
    sizes = replace(sizes, **{name: getattr(options, name) for name in vars(sizes)})
    if options.find_memory:
        return find_memory(plan, options, sizes, options.gpus_each)
    return session.run(plan, options, sizes, options.gpus_each)


if __name__ == "__main__":
    sys.exit(main())
