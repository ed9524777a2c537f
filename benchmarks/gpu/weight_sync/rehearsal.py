"""Stand-ins for a machine without a GPU: what runs is the benchmark's own logic, verl's and Ray's."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Final

from verl_mtp_plugin.testing import rollout_process, sglang_engine, toy_model

HOOK: Final = rollout_process.HOOK
ENGINE: Final = dict(sglang_engine.ENGINE_KWARGS)
ENVIRONMENT: Final = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}


def prepare() -> None:
    """Before verl is imported."""
    with contextlib.suppress(ImportError):
        importlib.import_module("wandb")  # asks IPython about a notebook, which from here on is a stub
    sglang_engine.install()
    rollout_process.prepare()


def model(folder: Path) -> Path:
    """A model that consists of a config, a tokenizer and three tensors."""
    import torch
    from safetensors.torch import save_file

    toy_model.make(folder)
    names = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    save_file({name: torch.zeros(256, 64) for name in names}, folder / "model.safetensors")
    return folder
