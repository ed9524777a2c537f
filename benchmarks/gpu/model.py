"""A small MiMo with one MTP layer and random weights, with a tokenizer for data.py's text, as a Hugging Face folder.

    python -m benchmarks.gpu.model FOLDER [--layers 16] [--hidden 1024] [--mtp-layers 1]

By default 211M parameters. Names, shapes and the two Python files follow the published MiMo-7B, which brings its own
classes too (``trust_remote_code``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import tokenizer

VOCABULARY = 4096  # rows of the embedding; the tokenizer has fewer tokens
HEAD_DIM = 128
DEVIATION = 0.02  # of random weights

CONFIGURATION = '''"""MiMo's configuration: Qwen2's, and the number of MTP layers."""

from transformers import Qwen2Config


class MiMoConfig(Qwen2Config):
    model_type = "mimo"

    def __init__(self, num_nextn_predict_layers=0, **kwargs):
        theta = kwargs.get("rope_theta", 10000.0)
        super().__init__(**kwargs)
        self.num_nextn_predict_layers = num_nextn_predict_layers
        if getattr(self, "rope_theta", None) is None:  # transformers 5 keeps it in rope_parameters alone
            self.rope_theta = theta
'''

MODELING = '''"""MiMo without its MTP layers: Qwen2."""

from transformers import Qwen2ForCausalLM

from .configuration_mimo import MiMoConfig


class MiMoForCausalLM(Qwen2ForCausalLM):
    config_class = MiMoConfig
    _keys_to_ignore_on_load_unexpected = [r"model\\.mtp_layers\\."]
'''


def configuration(layers: int, hidden: int, mtp_layers: int) -> dict[str, Any]:
    """config.json; the ids of special tokens are those of tokenizer.py."""
    return {
        "architectures": ["MiMoForCausalLM"],
        "model_type": "mimo",
        "auto_map": {
            "AutoConfig": "configuration_mimo.MiMoConfig",
            "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM",
        },
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // HEAD_DIM,
        "num_key_value_heads": max(hidden // HEAD_DIM // 2, 1),
        "head_dim": HEAD_DIM,
        "num_nextn_predict_layers": mtp_layers,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": layers,
        "initializer_range": DEVIATION,
        "torch_dtype": "bfloat16",
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def weights(config: dict[str, Any], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Name and bfloat16 tensor ``[out, in]``: matrices normal, norms one, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    queries, keys = (config[f"num_{kind}_heads"] * HEAD_DIM for kind in ("attention", "key_value"))

    def matrix(name: str, rows: int, columns: int, deviation: float = DEVIATION) -> tuple[str, Tensor]:
        values = torch.randn(rows, columns, generator=generator) * deviation
        return f"{name}.weight", values.to(torch.bfloat16)

    def norms(prefix: str, *names: str) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield f"{prefix}.{name}.weight", torch.ones(hidden, dtype=torch.bfloat16)

    def layer(prefix: str) -> Iterator[tuple[str, Tensor]]:
        into_residual = DEVIATION / (2 * layers) ** 0.5
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield matrix(f"{prefix}.self_attn.{name}_proj", rows, hidden)
            yield f"{prefix}.self_attn.{name}_proj.bias", torch.zeros(rows, dtype=torch.bfloat16)
        yield matrix(f"{prefix}.self_attn.o_proj", hidden, queries, into_residual)
        yield matrix(f"{prefix}.mlp.gate_proj", inner, hidden)
        yield matrix(f"{prefix}.mlp.up_proj", inner, hidden)
        yield matrix(f"{prefix}.mlp.down_proj", hidden, inner, into_residual)
        yield from norms(prefix, "input_layernorm", "post_attention_layernorm")

    yield matrix("model.embed_tokens", config["vocab_size"], hidden)
    yield matrix("lm_head", config["vocab_size"], hidden)
    yield from norms("model", "norm")
    for index in range(layers):
        yield from layer(f"model.layers.{index}")
    for index in range(config["num_nextn_predict_layers"]):
        prefix = f"model.mtp_layers.{index}"
        yield from layer(prefix)
        yield from norms(prefix, "token_layernorm", "hidden_layernorm", "final_layernorm")
        yield matrix(f"{prefix}.input_proj", hidden, 2 * hidden)


def make(folder: Path, layers: int = 16, hidden: int = 1024, mtp_layers: int = 1, seed: int = 0) -> int:
    """Writes the model; returns the number of its parameters."""
    config = configuration(layers, hidden, mtp_layers)
    return write(folder, config, dict(weights(config, seed)))


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> int:
    """Writes a model with this configuration and these weights; returns the number of its parameters."""
    from safetensors.torch import save_file

    write_configuration(folder, config)
    file = "model.safetensors"
    save_file(tensors, folder / file, metadata={"format": "pt"})
    total = sum(tensor.numel() for tensor in tensors.values())
    index = {"metadata": {"total_size": 2 * total}, "weight_map": dict.fromkeys(tensors, file)}
    (folder / f"{file}.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return total


def write_configuration(folder: Path, config: dict[str, Any]) -> None:
    """Writes all of a model but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    size = tokenizer.make(folder)
    if size > config["vocab_size"]:
        raise ValueError(f"{size} tokens, {config['vocab_size']} embeddings")
    generation = {key: config[key] for key in ("pad_token_id", "eos_token_id")}
    for name, content in (("config", config), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "configuration_mimo.py").write_text(CONFIGURATION)
    (folder / "modeling_mimo.py").write_text(MODELING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=1024, help="a multiple of 128")
    parser.add_argument("--mtp-layers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    total = make(args.folder, args.layers, args.hidden, args.mtp_layers, args.seed)
    print(f"{args.folder}: {total / 1e6:.0f}M parameters")


if __name__ == "__main__":
    main()
