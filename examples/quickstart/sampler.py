"""A sampler in plain PyTorch that knows nothing of Megatron or verl: it reads the exported Hugging Face tensors.

It draws tokens one by one as a rollout engine would, lets the MTP layer draft the token after next at every step, and
counts how often the draft is the token that is then really drawn. A rollout engine with speculative decoding would
have got each of those tokens for free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Key and value ``[b, kv_heads, t, d]`` of each layer, by its name.
Cache = dict[str, tuple[Tensor, Tensor]]


class TinyMiMo:
    """MiMo's forward, from its tensors ``[out, in]`` by Hugging Face name, in fp32."""

    def __init__(self, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self.weights = {name: tensor.float() for name, tensor in weights.items()}
        self.config = config
        self.head_dim = config["hidden_size"] // config["num_attention_heads"]

    def main(self, ids: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """Ids ``[b, t]`` after those in the cache, to logits ``[b, t, vocab]`` and last hidden states ``[b, t, h]``."""
        hidden = self._embed(ids)
        for i in range(self.config["num_hidden_layers"]):
            hidden = self._layer(f"model.layers.{i}", hidden, cache)
        hidden = self._norm("model.norm", hidden)
        return self._linear("lm_head", hidden), hidden

    def draft(self, hidden: Tensor, following: Tensor, cache: Cache) -> Tensor:
        """The MTP layer: hidden states at t ``[b, t, h]`` and the ids at t+1 ``[b, t]``, to logits for t+2.

        MiMo joins them hidden state first.
        """
        prefix = "model.mtp_layers.0"
        known = self._norm(f"{prefix}.hidden_layernorm", hidden)
        token = self._norm(f"{prefix}.token_layernorm", self._embed(following))
        joined = self._linear(f"{prefix}.input_proj", torch.cat([known, token], -1))
        out = self._norm(f"{prefix}.final_layernorm", self._layer(prefix, joined, cache))
        return self._linear("lm_head", out)

    def log_probs(self, ids: Tensor) -> Tensor:
        """``[t]`` to the main model's log-probability of each next id, ``[t - 1]``."""
        logits, _ = self.main(ids[None], {})
        return _log_prob_of(logits[0, :-1], ids[1:])

    def draft_log_probs(self, ids: Tensor) -> Tensor:
        """``[t]`` to the MTP layer's log-probability of each id after next, ``[t - 2]``."""
        _, hidden = self.main(ids[None], {})
        logits = self.draft(hidden[:, :-1], ids[None, 1:], {})
        return _log_prob_of(logits[0, :-1], ids[2:])

    def _embed(self, ids: Tensor) -> Tensor:
        return self.weights["model.embed_tokens.weight"][ids]

    def _linear(self, name: str, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, name: str, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, hidden.shape[-1:], self.weights[f"{name}.weight"], self.config["rms_norm_eps"])

    def _layer(self, name: str, hidden: Tensor, cache: Cache) -> Tensor:
        attended = self._attention(name, self._norm(f"{name}.input_layernorm", hidden), cache)
        hidden = hidden + self._linear(f"{name}.self_attn.o_proj", attended)
        normed = self._norm(f"{name}.post_attention_layernorm", hidden)
        gated = F.silu(self._linear(f"{name}.mlp.gate_proj", normed)) * self._linear(f"{name}.mlp.up_proj", normed)
        return hidden + self._linear(f"{name}.mlp.down_proj", gated)

    def _attention(self, name: str, hidden: Tensor, cache: Cache) -> Tensor:
        past = cache[name][0].shape[2] if name in cache else 0
        positions = torch.arange(past, past + hidden.shape[1])

        def heads(projection: str) -> Tensor:
            return self._linear(f"{name}.self_attn.{projection}_proj", hidden).unflatten(-1, (-1, self.head_dim))

        query, key, value = (heads(projection).transpose(1, 2) for projection in "qkv")
        query, key = self._rotate(query, positions), self._rotate(key, positions)
        if past:
            key, value = torch.cat([cache[name][0], key], 2), torch.cat([cache[name][1], value], 2)
        cache[name] = key, value
        shared = query.shape[1] // key.shape[1]
        visible = torch.arange(key.shape[2])[None] <= positions[:, None]
        out = F.scaled_dot_product_attention(
            query, key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1), attn_mask=visible
        )
        return out.transpose(1, 2).flatten(2)

    def _rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Rotary embedding of ``[b, heads, t, d]``, whose halves are the real and imaginary parts."""
        exponents = torch.arange(0, self.head_dim, 2) / self.head_dim
        angles = positions[:, None] / self.config["rope_theta"] ** exponents
        real, imaginary = heads.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)


def _log_prob_of(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]


@dataclass(frozen=True)
class Sampled:
    """Drawn ids ``[b, t]`` filled up with the end token, where a draft was made, and where it was right."""

    ids: Tensor
    drafted: Tensor
    accepted: Tensor

    @property
    def acceptance(self) -> float:
        return int(self.accepted.sum()) / max(int(self.drafted.sum()), 1)


def sample(
    model: TinyMiMo, prompts: Tensor, *, temperature: float, end: int, seed: int = 0, longest: int = 40
) -> Sampled:
    """Continue prompts ``[b, t]`` of one length; at temperature 0 the likeliest token is taken.

    The draft is the MTP layer's likeliest token. The first token has no draft, and what follows the end is not counted.
    """
    generator = torch.Generator().manual_seed(seed)

    def pick(logits: Tensor) -> Tensor:
        if temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]

    cache: Cache = {}
    logits, hidden = model.main(prompts, cache)
    drawn = [pick(logits[:, -1])]
    alive = drawn[0] != end
    drafted, accepted = [torch.zeros_like(alive)], [torch.zeros_like(alive)]
    draft = model.draft(hidden, torch.cat([prompts[:, 1:], drawn[0][:, None]], 1), cache)[:, -1].argmax(-1)
    while alive.any() and len(drawn) < longest:
        logits, hidden = model.main(drawn[-1][:, None], cache)
        token = pick(logits[:, -1])
        drafted.append(alive)
        accepted.append(alive & (draft == token))
        drawn.append(torch.where(alive, token, end))
        alive = alive & (token != end)
        draft = model.draft(hidden, drawn[-1][:, None], cache)[:, -1].argmax(-1)
    return Sampled(*(torch.stack(columns, 1) for columns in (drawn, drafted, accepted)))
