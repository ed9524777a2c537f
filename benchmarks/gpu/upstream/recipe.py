"""What is put around an upstream script: its environment variables, and overrides behind it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

A: Final = "actor_rollout_ref"
MTP: Final = f"{A}.model.mtp"
SGLANG: Final = f"+{A}.rollout.engine_kwargs.sglang"
LOG_KEY: Final = "+{}.reward_kwargs.overlong_buffer_cfg.log"


@dataclass(frozen=True)
class Variant:
    """One way to run a script. ``plugin`` is ``VERL_MTP_PLUGIN``: "" leaves it to be found, as installed."""

    name: str
    title: str
    plugin: str = ""
    mtp: bool = True
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def without_plugin(self) -> bool:
        return self.plugin == "off"


@dataclass(frozen=True)
class Files:
    """Where model, data and reward lie, and where a run may write."""

    model: Path
    data: Path  # has train.parquet and test.parquet
    reward: Path
    work: Path

    def named(self, text: str) -> str:
        """``text`` without this machine's folders, for results that are kept."""
        places = {self.model: "$MODEL", self.data: "$DATA", self.reward: "$REWARD"}
        places |= {self.work: "$WORK", self.work.parent: "$WORK/.."}
        for place in sorted(places, key=lambda place: -len(str(place))):
            text = text.replace(str(place), places[place])
        return text


@dataclass(frozen=True)
class Sizes:
    """Small sizes for a small model; all of them are upstream's own variables or options."""

    steps: int = 6
    prompts: int = 32  # per step
    mini_batch: int = 16  # prompts
    responses: int = 8  # per prompt
    prompt_tokens: int = 64
    response_tokens: int = 288
    tokens_per_gpu: int = 8192
    running: int = 256  # requests at a time
    memory: float = 0.4
    learning_rate: float = 1e-5
    draft_steps: int = 3

    @property
    def buffer_tokens(self) -> int:
        """The end of a response in which its length is punished: DAPO's soft overlong punishment."""
        return self.response_tokens // 9


def environment(variant: Variant, experiment: str, files: Files) -> dict[str, str]:
    """Variables of both scripts and of the processes that they start."""
    chosen = {
        "MODEL_PATH": str(files.model),
        "PROJECT_NAME": "verl_mtp",
        "EXPERIMENT_NAME": experiment,
        "VERL_USE_UV": "0",
        "VERL_FILE_LOGGER_PATH": str(files.work / "metrics.jsonl"),
        "HYDRA_FULL_ERROR": "1",
        "RAY_DEDUP_LOGS": "0",  # or lines of SGLang's log are folded into one
        "RAY_memory_monitor_refresh_ms": "0",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
    }
    return chosen | ({"VERL_MTP_PLUGIN": variant.plugin} if variant.plugin else {})


def machine(files: Files, options: argparse.Namespace) -> dict[str, Any]:
    """For a machine with a few GPUs, no tracker and, maybe, neither flash-attn nor Apex, as ``options`` say."""
    megatron = f"{A}.actor.megatron"
    chosen: dict[str, Any] = {
        f"{megatron}.vanilla_mbridge": False,  # Megatron-Bridge: no released mbridge has MiMo on current megatron-core
        f"{A}.rollout.agent.num_workers": 2,
        "reward.num_workers": 1,
        "data.dataloader_num_workers": 1,
        "+ray_kwargs.ray_init.include_dashboard": False,
        "+ray_kwargs.ray_init.address": "local",  # several runs side by side are several clusters
        "trainer.logger": '["console","file"]',
        "trainer.default_local_dir": files.work / "checkpoints",
        "hydra.run.dir": files.work / "hydra",
        "reward.custom_reward_function.path": files.reward,
    }
    if not options.flash_attention:
        chosen[f"{megatron}.override_transformer_config.attention_backend"] = "auto"
    if not options.fused_gradients:
        chosen[f"+{megatron}.override_transformer_config.gradient_accumulation_fusion"] = False
    if not options.rehearse:  # or a small model's step is mostly launches of kernels, for each packed sequence some
        chosen[f"+{megatron}.override_transformer_config.apply_rope_fusion"] = True
    return chosen


def rollout(sizes: Sizes) -> dict[str, Any]:
    """SGLang as it would run, but with its own log on, and few CUDA graphs."""
    return {
        f"{A}.rollout.max_num_seqs": sizes.running,
        f"{SGLANG}.log_level": "info",
        f"{SGLANG}.decode_log_interval": 5,
        f"{SGLANG}.random_seed": 1,
        f"{SGLANG}.cuda_graph_bs": graph_sizes(sizes.running),
    }


def shared(sizes: Sizes) -> dict[str, Any]:
    """For a GPU that others use at the same time: a KV cache for all requests that may run, instead of a share."""
    return {f"{SGLANG}.max_total_tokens": 4 * sizes.running * (sizes.prompt_tokens + sizes.response_tokens) // 3}


def graph_sizes(running: int) -> str:
    """Batch sizes to capture CUDA graphs for: each costs start-up time, and a batch is padded to the next."""
    chosen = [size for size in (1, 8, 32, 64, 128, 192) if size < running]
    return f"[{','.join(map(str, [*chosen, running]))}]"


def speculation(sizes: Sizes) -> dict[str, Any]:
    """Speculative decoding with the MTP layer; upstream's hybrid script trains MTP but never turns this on."""
    return {
        f"{MTP}.enable_rollout": True,
        f"{MTP}.speculative_num_steps": sizes.draft_steps,
        f"{MTP}.speculative_eagle_topk": 1,
        f"{MTP}.speculative_num_draft_tokens": sizes.draft_steps + 1,
    }


def no_mtp() -> dict[str, Any]:
    """The same model without its MTP layer."""
    return {f"{MTP}.enable": False, f"{MTP}.enable_train": False, f"{MTP}.enable_rollout": False}


def of_variant(variant: Variant, sizes: Sizes) -> dict[str, Any]:
    """What makes the variant, behind everything else."""
    return (speculation(sizes) if variant.mtp else no_mtp()) | dict(variant.overrides)


def as_arguments(overrides: Mapping[str, Any]) -> list[str]:
    """As Hydra reads them."""
    return [f"{name}={value}" for name, value in overrides.items()]
