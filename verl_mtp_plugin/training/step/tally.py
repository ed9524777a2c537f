"""What the MTP losses of one optimizer step add up to, until somebody asks: per depth, on the device, no waiting."""

from __future__ import annotations

from typing import Any

import torch

from ..loss import Totals

_sums: dict[int, torch.Tensor] = {}  # depth -> [3]: loss, correct, tokens


def add(depth: int, totals: Totals) -> None:
    """Count one micro-batch of one depth (from 0)."""
    row = torch.stack([totals.loss, totals.correct, totals.tokens]).double()
    _sums[depth] = _sums[depth] + row if depth in _sums else row


def clear() -> None:
    """Forget what was counted."""
    _sums.clear()


def take(depths: int, group: Any, device: Any) -> list[tuple[float, float, float]]:
    """Mean loss, top-1 acceptance and number of trained tokens of each depth since the last call.

    A collective: every rank of ``group`` must call it, whether it has counted anything or not.

    Args:
        depths: the model's MTP depths.
        group: data- and context-parallel ranks, which hold different tokens; None for this process alone.
        device: where the group's tensors lie.
    """
    rows = [_sums.get(depth, torch.zeros(3, dtype=torch.float64)) for depth in range(depths)]
    clear()
    table = torch.stack([row.to(device) for row in rows])
    if group is not None:
        torch.distributed.all_reduce(table, group=group)
    return [
        (loss / max(tokens, 1.0), correct / max(tokens, 1.0), tokens) for loss, correct, tokens in table.cpu().tolist()
    ]
