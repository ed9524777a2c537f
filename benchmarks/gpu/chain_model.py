"""A MiMo that drafts well untrained: most of its tokens have one likely successor, and its MTP layer knows it.

    python -m benchmarks.gpu.chain_model FOLDER

112M parameters. For checks of serving and weight syncs, where drafts must really be accepted: they are as long as the
draft model has these weights, and no longer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.gpu import model

LAYERS, HIDDEN, VOCABULARY = 8, 1024, 2048
BEGIN, END = 256, 257
#: Tokens after which the sequence ends, so that answers differ in length.
ENDING: Final = 30
#: RMS of the embeddings. The random layers add about 1.3 together, and barely disturb them.
LOUDNESS: Final = 4.0
#: Of a token's row in the head, as a share of the embedding before it: the successor has a probability of about 0.9.
PEAK: Final = 0.01


def configuration() -> dict[str, Any]:
    return model.configuration(LAYERS, HIDDEN, mtp_layers=1) | {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rope_theta": 640000.0,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": END,
    }


def weights(config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Name and bfloat16 tensor, biases ``[out]`` and matrices ``[out, in]``.

    Three come twice, at random and, at the end, as the chain wants them; the later ones count.
    """
    generator = torch.Generator().manual_seed(0)
    inner = config["intermediate_size"]
    queries, keys = (config[f"num_{kind}_heads"] * model.HEAD_DIM for kind in ("attention", "key_value"))

    def random(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * model.DEVIATION).to(torch.bfloat16)

    def norms(prefix: str, *names: str) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield f"{prefix}.{name}.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)

    def layer(prefix: str) -> Iterator[tuple[str, Tensor]]:
        heads = {"q": queries, "k": keys, "v": keys}
        for name, rows in heads.items():
            yield f"{prefix}.self_attn.{name}_proj.weight", random(rows, HIDDEN)
        for name, rows in heads.items():
            yield f"{prefix}.self_attn.{name}_proj.bias", random(rows)
        yield f"{prefix}.self_attn.o_proj.weight", random(HIDDEN, queries)
        yield f"{prefix}.mlp.gate_proj.weight", random(inner, HIDDEN)
        yield f"{prefix}.mlp.up_proj.weight", random(inner, HIDDEN)
        yield f"{prefix}.mlp.down_proj.weight", random(HIDDEN, inner)
        yield from norms(prefix, "input_layernorm", "post_attention_layernorm")

    yield "model.embed_tokens.weight", random(VOCABULARY, HIDDEN)
    yield "lm_head.weight", random(VOCABULARY, HIDDEN)
    for index in range(LAYERS):
        yield from layer(f"model.layers.{index}")
    yield from norms("model", "norm")
    yield from layer("model.mtp_layers.0")
    yield from norms("model.mtp_layers.0", "token_layernorm", "hidden_layernorm", "final_layernorm")
    yield "model.mtp_layers.0.input_proj.weight", random(HIDDEN, 2 * HIDDEN)
    yield from chain(generator)


def chain(generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Embedding, head and the MTP layer's projection, which together make each token's successor likely."""
    directions = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    directions /= directions.pow(2).mean(-1, keepdim=True).sqrt()
    order = torch.randperm(VOCABULARY, generator=generator)
    successor = torch.empty(VOCABULARY, dtype=torch.long)
    successor[order] = order.roll(-1)
    successor[torch.randperm(VOCABULARY, generator=generator)[:ENDING]] = END
    head = torch.zeros(VOCABULARY, HIDDEN).index_add_(0, successor, directions * PEAK)
    # Of [hidden state, embedding of the next token] the draft takes the second: its successor is the token after next.
    projection = torch.cat([torch.zeros(HIDDEN, HIDDEN), LOUDNESS * torch.eye(HIDDEN)], dim=1)
    named = {
        "model.embed_tokens": LOUDNESS * directions,
        "lm_head": head,
        "model.mtp_layers.0.input_proj": projection,
    }
    for name, tensor in named.items():
        yield f"{name}.weight", tensor.to(torch.bfloat16)


def make(folder: Path) -> int:
    """Writes the model; returns the number of its parameters."""
    config = configuration()
    return model.write(folder, config, dict(weights(config)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print(f"{folder}: {make(folder) / 1e6:.0f}M parameters")


if __name__ == "__main__":
    main()
