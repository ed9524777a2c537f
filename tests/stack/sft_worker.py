"""Runs verl's SFT trainer as ``python -m verl.trainer.sft_trainer OVERRIDES`` does, on a machine without a GPU.

``python -m tests.stack.sft_worker FOLDER BRIDGE STEPS OVERRIDES``: makes a tiny MiMo and a tiny dataset in FOLDER. The
plugin is not activated here: it must come by its entry point, or not at all.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import torch

from verl_mtp_plugin.testing import cuda, transformer_engine, verl_engine

from . import tiny_mimo  # first: it makes the quickstart's modules importable

# isort: split
import model
from data import Problem, Problems, encode

from .engine_expected import expected_step

BATCH = 4
MTP_SCALE = 0.1  # verl's default
#: The quickstart's format: <user>question<asst>answer<eos>.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<user>' + message.content if message.role == 'user' else '<asst>' + message.content + '<eos>' -}}"
    "{%- endfor -%}{{- '<asst>' if add_generation_prompt else '' -}}"
)


def make_dataset(file: Path, problems: list[Problem]) -> Path:
    """A parquet file of conversations, as ``MultiTurnSFTDataset`` reads them."""
    pandas = importlib.import_module("pandas")  # untyped

    rows = [[{"role": "user", "content": p.question}, {"role": "assistant", "content": p.answer}] for p in problems]
    pandas.DataFrame({"messages": rows}).to_parquet(file)
    return file


def expected(folder: Path, problems: list[Problem]) -> dict[str, float]:
    """What the first step must report, on the batch that ``DistributedSampler`` draws with its seed of 0."""
    from transformers import AutoTokenizer

    order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(0)).tolist()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = [encode(tokenizer, problems[i]) for i in order[:BATCH]]
    return expected_step(model.load(folder), batch, mtp_scale=MTP_SCALE)


def settings(folder: Path, mimo: Path, data: Path, bridge: str, steps: int) -> dict[str, Any]:
    """verl's config, as on a command line."""
    megatron = {f"+engine.override_transformer_config.{k}": v for k, v in verl_engine.TRANSFORMER_CONFIG.items()}
    return megatron | {
        "engine": "megatron",
        "optim": "megatron",
        "engine.vanilla_mbridge": bridge == tiny_mimo.MBRIDGE,
        "+model.override_config.attn_implementation": "eager",
        "model.path": mimo,
        "model.mtp.enable": True,
        "model.mtp.enable_train": True,
        "model.mtp.detach_encoder": True,
        "model.mtp.mtp_loss_scaling_factor": MTP_SCALE,
        "data.train_files": data,
        "data.train_batch_size": BATCH,
        "data.num_workers": 0,
        "trainer.default_local_dir": folder / "checkpoints",
        "trainer.total_epochs": 1,
        "trainer.total_training_steps": steps,
        "trainer.logger": "[console]",
        "hydra.run.dir": folder,
    }


def main() -> None:
    folder, bridge, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    mimo = tiny_mimo.make(folder / "mimo", bridge)
    (mimo / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    problems = Problems(seed=1).take(BATCH * steps)
    data = make_dataset(folder / "train.parquet", problems)
    tokens = sum(len(problem.answer) + 1 for problem in problems)  # the characters and the end
    print("=> " + json.dumps({"first_step": expected(mimo, problems), "tokens": tokens}))
    cuda.install()
    import verl  # noqa: F401  # as in any job, this loads the plugin

    cuda.install_megatron()
    transformer_engine.install()
    verl_engine.install()
    tiny_mimo.prepare_bridge(bridge)
    overrides = [f"{name}={value}" for name, value in settings(folder, mimo, data, bridge, steps).items()]
    sys.argv = ["sft_trainer", *overrides, *sys.argv[4:]]
    runpy.run_module("verl.trainer.sft_trainer", run_name="__main__")


if __name__ == "__main__":
    main()
