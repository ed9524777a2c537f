"""Batches for all replicas and micro-batches, and the part of one that a context-parallel rank holds."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ..models import SEQUENCE, Batch, random_batch
from .layouts import Layout

CPU = torch.device("cpu")
#: Multiples of four, as two context-parallel ranks need; tensor parallelism wants even sums.
LENGTHS = (12, 8, 20)


@dataclasses.dataclass(frozen=True)
class Item:
    """A micro-batch of one replica: the rows of one padded batch, or sequences to be packed, one batch each."""

    rows: tuple[Batch, ...]
    packed: bool

    def masked(self, *, keep: float) -> Item:
        """With the loss mask multiplied."""
        return dataclasses.replace(self, rows=tuple(b.replace(loss_mask=keep * b.loss_mask) for b in self.rows))


#: By micro-batch, then by replica.
Grid = Sequence[Sequence[Item]]


def grid(
    layout: Layout, microbatches: int = 1, *, holes: bool = True, lengths: Sequence[int] = LENGTHS
) -> list[list[Item]]:
    """Random tokens for every replica and micro-batch.

    With ``holes`` the loss mask differs from row to row, so that no two ranks train the same number of tokens.
    """
    return [
        [item(layout, seed=10 * step + replica, holes=holes, lengths=lengths) for replica in range(layout.data)]
        for step in range(microbatches)
    ]


def item(layout: Layout, seed: int, *, holes: bool, lengths: Sequence[int] = LENGTHS) -> Item:
    if layout.packed:
        rows = [random_batch(CPU, 1, length, seed=100 * seed + length) for length in lengths]
    else:
        rows = [random_batch(CPU, 2, SEQUENCE, seed=100 * seed + 3)]
    if holes:
        rows = [row.replace(loss_mask=random_mask(row.loss_mask, seed + i)) for i, row in enumerate(rows)]
    if layout.model.get("moe"):
        rows = [padded(row) for row in rows]
    return Item(tuple(rows), layout.packed)


def random_mask(mask: torch.Tensor, seed: int) -> torch.Tensor:
    """Zeros and ones, the fewer ones the larger the seed.

    The first token is trained: what rolls over from the next sequence would not be seen behind a mask.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(mask.shape, generator=generator) < 0.9 / (1 + seed % 10)).float()
    drawn[:, 0] = 1.0
    return drawn


def padded(batch: Batch) -> Batch:
    """With a padding mask (True: padding) where this megatron-core's model takes one."""
    from megatron.core.models.gpt.gpt_model import GPTModel

    if "padding_mask" not in inspect.signature(GPTModel.forward).parameters:
        return batch
    mask = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    mask[1, 11:] = True
    return batch.replace(loss_mask=batch.loss_mask * ~mask, extra={"padding_mask": mask})


def owner(length: int, ranks: int) -> torch.Tensor:
    """Each position's context-parallel rank [s]: of a sequence's 2n chunks rank r has the r-th from both ends."""
    chunk = torch.arange(length) // (length // (2 * ranks))
    return torch.minimum(chunk, 2 * ranks - 1 - chunk)


def positions(length: int, rank: int, ranks: int) -> torch.Tensor:
    """The positions that ``rank`` holds, in order."""
    return (owner(length, ranks) == rank).nonzero().squeeze(1) if ranks > 1 else torch.arange(length)


def local(item: Item, rank: int, ranks: int) -> Batch:
    """What context-parallel rank ``rank`` gets: rows [b, s / cp], or packed sequences [1, t / cp]."""
    parts = [_cut(batch, positions(batch.input_ids.shape[1], rank, ranks)) for batch in item.rows]
    if not item.packed:
        return parts[0]
    names = ("input_ids", "position_ids", "labels", "loss_mask")
    joined: Any = {name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names}
    extra = {"packed_seq_params": packed_parameters([batch.input_ids.shape[1] for batch in item.rows])}
    return Batch(**joined, attention_mask=None, extra=extra)


def _cut(batch: Batch, held: torch.Tensor) -> Batch:
    names = ("input_ids", "position_ids", "labels", "loss_mask")
    extra = {name: value[:, held] for name, value in batch.extra.items()}
    changes: Any = {name: getattr(batch, name)[:, held] for name in names}
    return batch.replace(**changes, extra=extra)


def packed_parameters(lengths: Sequence[int]) -> Any:
    """``PackedSeqParams`` as verl makes them: the bounds count the tokens of all ranks."""
    from megatron.core.packed_seq_params import PackedSeqParams

    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds, cu_seqlens_kv=bounds, cu_seqlens_q_padded=bounds, cu_seqlens_kv_padded=bounds,
        max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths),
    )  # fmt: skip
