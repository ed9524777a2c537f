"""Attention in plain PyTorch that also understands packed sequences, which megatron-core's local one does not."""

from __future__ import annotations

from typing import Any

import torch


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Softmax attention of one sequence; all of [s, heads, d]. Fewer key heads are shared (grouped-query attention)."""
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(future, float("-inf")).softmax(-1), value)


class PackedAttention(torch.nn.Module):
    """Takes the place of ``core_attention`` in a layer spec."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()  # no weights; head count and size are read from the tensors

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        """[s, b, heads, d] to [s, b, heads * d]; packed: [t, heads, d] to [t, heads * d]."""
        packed = kwargs.get("packed_seq_params")
        if packed is None:
            rows = [causal(query[:, i], key[:, i], value[:, i]) for i in range(query.shape[1])]
            return torch.stack(rows, dim=1).flatten(2)
        bounds = packed.cu_seqlens_q.tolist()
        pieces = [causal(query[a:b], key[a:b], value[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
        return torch.cat(pieces).flatten(1)
