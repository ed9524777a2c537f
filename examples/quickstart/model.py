"""A tiny MiMo with one MTP layer, as a Hugging Face folder: config, character tokenizer, random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SPECIAL_TOKENS: Final = ("<pad>", "<eos>", "<user>", "<asst>", "<unk>")
CHARACTERS: Final = "0123456789+=;?"
PAD: Final = SPECIAL_TOKENS.index("<pad>")
EOS: Final = SPECIAL_TOKENS.index("<eos>")

#: MiMo-7B's shape, very much smaller. The names are those of its published config.
CONFIG: Final[dict[str, Any]] = {
    "architectures": ["MiMoForCausalLM"],
    "model_type": "mimo",
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "pad_token_id": PAD,
    "eos_token_id": EOS,
}


def register() -> None:
    """Let transformers read ``model_type: mimo``. The real MiMo brings its own config class (trust_remote_code)."""
    from transformers import AutoConfig, Qwen2Config

    class MiMoConfig(Qwen2Config):
        model_type = "mimo"
        rope_theta = CONFIG["rope_theta"]  # transformers 5 moved it into rope_parameters; mbridge reads it here

    AutoConfig.register("mimo", MiMoConfig, exist_ok=True)


def make(folder: Path, seed: int) -> Path:
    """Write a new model with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    _make_tokenizer(folder)
    _save(folder, random_weights(seed))
    return folder


def copy_with_weights(source: Path, folder: Path, weights: Mapping[str, Tensor]) -> Path:
    """Write a model like ``source`` with other weights: what a checkpoint of a training run is."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if not file.name.startswith("model.safetensors"):
            shutil.copy(file, folder)
    _save(folder, weights)
    return folder


def load(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, by Hugging Face name."""
    return load_file(folder / "model.safetensors")


def _save(folder: Path, weights: Mapping[str, Tensor]) -> None:
    file = "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, file)}
    (folder / f"{file}.index.json").write_text(json.dumps(index))


def _make_tokenizer(folder: Path) -> None:
    """One token for each character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL_TOKENS, *CHARACTERS]
    tokens += [f"<unused{i}>" for i in range(len(tokens), CONFIG["vocab_size"])]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<asst>"],
    ).save_pretrained(folder)


def random_weights(seed: int) -> dict[str, Tensor]:
    """Matrices from a normal distribution, norms of ones, biases of zeros; ``[out, in]`` as in Hugging Face."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inter, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    kv = hidden // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    weights: dict[str, Tensor] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        values = torch.randn(rows, columns, generator=generator) * 0.05
        weights[f"{name}.weight"] = values.to(torch.bfloat16)

    def norms(prefix: str, *names: str) -> None:
        for name in names:
            weights[f"{prefix}.{name}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)

    def layer(prefix: str) -> None:
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            matrix(f"{prefix}.self_attn.{name}_proj", rows, hidden)
            weights[f"{prefix}.self_attn.{name}_proj.bias"] = torch.zeros(rows, dtype=torch.bfloat16)
        matrix(f"{prefix}.self_attn.o_proj", hidden, hidden)
        matrix(f"{prefix}.mlp.gate_proj", inter, hidden)
        matrix(f"{prefix}.mlp.up_proj", inter, hidden)
        matrix(f"{prefix}.mlp.down_proj", hidden, inter)
        norms(prefix, "input_layernorm", "post_attention_layernorm")

    matrix("model.embed_tokens", vocab, hidden)
    matrix("lm_head", vocab, hidden)
    norms("model", "norm")
    for i in range(CONFIG["num_hidden_layers"]):
        layer(f"model.layers.{i}")
    for i in range(CONFIG["num_nextn_predict_layers"]):
        prefix = f"model.mtp_layers.{i}"
        layer(prefix)
        norms(prefix, "token_layernorm", "hidden_layernorm", "final_layernorm")
        matrix(f"{prefix}.input_proj", hidden, 2 * hidden)
    return weights
