"""TransformerEngine's dot-product attention in plain PyTorch: sbhd and packed thd, with context parallelism.

Context parallelism gathers the whole sequences on every rank, attends, and keeps the rank's own part. That is what the
ring of TransformerEngine computes, at none of its speed and none of its memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

#: Stands for minus infinity. Finite, so that a fully masked row of padding does not become NaN.
MASKED = -1e9


class GatherRanks(torch.autograd.Function):
    """``[t, ...]`` of this rank to ``[ranks * t, ...]`` of all, in rank order. Backward sums, and keeps our part."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, local.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad.chunk(dist.get_world_size(ctx.group))[dist.get_rank(ctx.group)], None


def held_positions(cu_seqlens: list[int], ranks: int) -> list[Tensor]:
    """Which tokens of the whole batch each rank holds: of every sequence's 2n chunks, the r-th and the r-th last."""
    held: list[Tensor] = []
    for rank in range(ranks):
        parts = []
        for start, end in zip(cu_seqlens[:-1], cu_seqlens[1:]):
            size = (end - start) // (2 * ranks)
            for first in (start + rank * size, end - (rank + 1) * size):
                parts.append(torch.arange(first, first + size))
        held.append(torch.cat(parts))
    return held


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, mask: Tensor | None = None) -> Tensor:
    """Attention over ``[n, s, h, d]``, computed in fp32. ``mask`` (n or 1, 1, s, s) is True where attention is off.

    Fewer key heads than query heads are shared, as in grouped-query attention.
    """
    shared = query.shape[2] // key.shape[2]
    query, key, value = (tensor.transpose(1, 2).float() for tensor in (query, key, value))
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    bias = None if mask is None else torch.zeros(mask.shape).masked_fill(mask, MASKED)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=causal and bias is None, scale=scale
    ).transpose(1, 2)


def attend_packed(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: list[int], scale: float) -> Tensor:
    """Causal attention within each sequence of ``[t, h, d]``. Sequences are padded at the end, where none looks."""
    lengths = [end - start for start, end in zip(cu_seqlens[:-1], cu_seqlens[1:])]
    used = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]  # [sequences, longest]

    def padded(packed: Tensor) -> Tensor:
        return packed.new_zeros(*used.shape, *packed.shape[1:]).masked_scatter(used[..., None, None], packed)

    return attend(padded(query), padded(key), padded(value), scale, causal=True)[used]


class DotProductAttention(MegatronModule):
    """For ``TEDotProductAttention``. As there, a causal mask type makes it ignore the attention mask it is given."""

    def __init__(
        self,
        config: Any,
        layer_number: int = 1,
        attn_mask_type: Any = None,
        attention_type: str = "self",
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        pg_collection: Any = None,
        **unused: Any,
    ) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale or (k_channels or config.kv_channels) ** -0.5
        self.attn_mask_type = attn_mask_type
        self.cp_group = getattr(pg_collection, "cp", None)
        if self.cp_group is None:
            self.cp_group = parallel_state.get_context_parallel_group(check_initialized=False)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        packed_seq_params: Any = None,
        **unused: Any,
    ) -> Tensor:
        """``[s, b, h, d]`` to ``[s, b, h*d]``, or packed ``[t, h, d]`` (or ``[t, 1, h, d]``) to ``[t, h*d]``."""
        if packed_seq_params is not None:
            parts = [tensor.squeeze(1) if tensor.dim() == 4 else tensor for tensor in (query, key, value)]
            padded = getattr(packed_seq_params, "cu_seqlens_q_padded", None)
            cu_seqlens = (packed_seq_params.cu_seqlens_q if padded is None else padded).tolist()
            return self._packed(*parts, cu_seqlens=cu_seqlens).flatten(1).to(query.dtype)
        length, batch = query.shape[:2]
        ranks = dist.get_world_size(self.cp_group) if self.cp_group is not None else 1
        mask_type = getattr(attn_mask_type or self.attn_mask_type, "name", "causal")
        if ranks == 1:
            causal = "causal" in mask_type
            q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))  # [b, s, h, d]
            out = attend(q, k, v, self.scale, causal, None if causal else attention_mask)
            return out.transpose(0, 1).flatten(2).to(query.dtype)
        if "causal" not in mask_type:
            raise NotImplementedError(f"context parallelism with a {mask_type} mask: only causal ones are stood in for")
        # One sequence after another makes it a packed batch of equal lengths.
        parts = [tensor.transpose(0, 1).flatten(0, 1) for tensor in (query, key, value)]
        cu_seqlens = [i * length * ranks for i in range(batch + 1)]
        out = self._packed(*parts, cu_seqlens=cu_seqlens)
        return out.unflatten(0, (batch, length)).transpose(0, 1).flatten(2).to(query.dtype)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, *, cu_seqlens: list[int]) -> Tensor:
        """``[t, h, d]`` of this rank; ``cu_seqlens`` counts the tokens of all ranks."""
        ranks = dist.get_world_size(self.cp_group) if self.cp_group is not None else 1
        if ranks == 1:
            return attend_packed(query, key, value, cu_seqlens, self.scale)
        held = held_positions(cu_seqlens, ranks)
        order = torch.cat(held).argsort()
        q, k, v = (GatherRanks.apply(tensor, self.cp_group)[order] for tensor in (query, key, value))
        return attend_packed(q, k, v, cu_seqlens, self.scale)[held[dist.get_rank(self.cp_group)]]
