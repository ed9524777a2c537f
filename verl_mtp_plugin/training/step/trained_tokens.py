"""How many tokens of a mini-batch each MTP depth trains on, read from verl's batch before it is cut."""

from __future__ import annotations

from typing import Any

import torch


def trained_tokens(
    input_ids: torch.Tensor, loss_mask: torch.Tensor, attention_mask: torch.Tensor | None, depths: int
) -> torch.Tensor:
    """The sum of the loss mask over the tokens that each depth can predict.

    Depth d (from 1) predicts the token at position j from position j - 1 - d, so it can predict none of the first
    1 + d tokens of a sequence. Those are prompt tokens as a rule, and then all depths have the same count.

    Args:
        input_ids: sequences of prompt and response; jagged [b, j], or padded [b, s].
        loss_mask: jagged [b, j'] or padded [b, s'], for the last tokens of each sequence: the responses, or all.
        attention_mask: [b, s], nonzero for tokens, where the batch has one; tells the lengths of padded responses.
        depths: number of MTP depths.

    Returns:
        Counts, fp64, [depths].
    """
    lengths = _lengths(input_ids, attention_mask)
    if loss_mask.is_nested:
        values, masked = loss_mask.values(), loss_mask.offsets().diff()
        row = torch.repeat_interleave(torch.arange(len(masked), device=masked.device), masked)
        column = torch.arange(len(values), device=values.device) - loss_mask.offsets()[:-1][row]
    else:
        tail = None if attention_mask is None else attention_mask[:, -loss_mask.shape[1] :]
        masked = _lengths(loss_mask, tail)
        values = loss_mask.flatten()
        row = torch.arange(loss_mask.shape[0], device=values.device).repeat_interleave(loss_mask.shape[1])
        column = torch.arange(loss_mask.shape[1], device=values.device).repeat(loss_mask.shape[0])
    position = (lengths.to(masked.device) - masked)[row] + column  # in the sequence of prompt and response
    values = values.double()
    return torch.stack([values[position >= 1 + depth].sum() for depth in range(1, depths + 1)])


def _lengths(tokens: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    if tokens.is_nested:
        offsets: torch.Tensor = tokens.offsets()
        return offsets.diff()
    if attention_mask is not None:
        return attention_mask.bool().sum(dim=1)
    return torch.full((tokens.shape[0],), tokens.shape[1], device=tokens.device)


def all_ranks(counts: torch.Tensor, group: Any, device: Any) -> list[float]:
    """Counts summed over data-parallel ranks. A collective of ``group``."""
    total = counts.to(device)
    if group is not None:
        torch.distributed.all_reduce(total, group=group)
    values: list[float] = total.tolist()
    return values
