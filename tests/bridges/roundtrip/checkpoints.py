"""A tiny Hugging Face checkpoint of any family: config, random tensors, no two of them alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import layouts


def tensors(config: Mapping[str, Any], *, copies: bool = False) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, the same ones in every process.

    Args:
        config: an HF config.
        copies: with what the published checkpoints of DeepSeek and GLM hold twice.
    """
    shapes = layouts.trunk(config) | layouts.mtp(config)
    made = {name: _random(name, shape) for name, shape in shapes.items()}
    return made | {name: made[of].clone() for name, of in layouts.copies(config).items() if copies}


def _random(name: str, shape: tuple[int, ...]) -> Tensor:
    """Values from 1/2 to 2, of both signs: a multiple of 1/256 below one and of 1/128 above it, which bf16 holds.

    One is often added to a norm's weight, or taken away, and with these no bit is lost by it.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.randint(0, 2, shape, generator=generator)
    mantissa = 1 + torch.randint(0, 128, shape, generator=generator) / 128
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    values = mantissa * 2.0 ** (exponent - 1)
    if name.endswith(layouts.FP32_SUFFIX):  # with more bits than bf16 has
        return values + torch.rand(shape, generator=generator) / 256
    return (values if "norm" in name else values * sign).bfloat16()


def write(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Path:
    """Write a model folder: ``config.json``, two files of tensors and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=1))
    names = list(weights)
    parts = (names[: len(names) // 2], names[len(names) // 2 :])
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file({name: weights[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
