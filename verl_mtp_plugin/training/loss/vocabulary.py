"""Softmax over a vocabulary whose logits lie in shards on the ranks of a tensor-parallel group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from . import softmax_kernels


@dataclass(frozen=True)
class RowStatistics:
    """What all shards together know of ``n`` tokens' logits. fp32; fp64 for fp64 logits."""

    highest: torch.Tensor  # [n], largest scaled logit
    log_sum: torch.Tensor  # [n], log of the sum of exp(logit - highest)
    best: torch.Tensor  # [n], id of the most probable token; the lowest of several


def row_statistics(logits: torch.Tensor, scale: float, group: Any) -> RowStatistics:
    """The statistics of ``scale * logits``.

    Args:
        logits: this rank's shard, [n, v / tp]; rank r holds the r-th part of the vocabulary.
        scale: multiplies the logits (MuP); positive.
        group: the tensor-parallel process group, None for an unsharded vocabulary.
    """
    if softmax_kernels.usable(logits):
        highest, log_sum, best = softmax_kernels.row_statistics(logits, scale)
    else:
        best = logits.max(dim=-1).indices  # the first of equal ones
        scaled = _scaled(logits, scale)
        highest = scaled.gather(1, best[:, None]).squeeze(1)
        log_sum = (scaled - highest[:, None]).exp_().sum(dim=-1).log()
    if group is None:
        return RowStatistics(highest, log_sum, best)
    shards = gather(torch.stack([highest, log_sum], dim=-1), group)  # [tp, n, 2]
    ids = gather(best + first_id(logits, group), group)  # [tp, n]
    top = shards[..., 0].max(dim=0)  # shards are in the order of ids, so ties go to the lowest id
    log_sum = (shards[..., 0] - top.values + shards[..., 1]).logsumexp(dim=0)
    return RowStatistics(top.values, log_sum, ids.gather(0, top.indices[None]).squeeze(0))


def log_probabilities(logits: torch.Tensor, scale: float, statistics: RowStatistics) -> torch.Tensor:
    """Log-probabilities [n, v / tp] of this shard's tokens in the whole vocabulary, in a new tensor."""
    return _scaled(logits, scale).sub_(statistics.highest[:, None]).sub_(statistics.log_sum[:, None])


def cross_entropy_slope(
    logits: torch.Tensor, scale: float, statistics: RowStatistics, columns: torch.Tensor, here: torch.Tensor
) -> torch.Tensor:
    """q - onehot(label): the derivative of the cross entropy by the scaled logits, written over ``logits``.

    Args:
        logits: [n, v / tp].
        scale: see :func:`row_statistics`.
        statistics: of these logits.
        columns: [n], the label's column where this shard has it.
        here: [n], whether it does.
    """
    if softmax_kernels.usable(logits):
        return softmax_kernels.cross_entropy_slope(
            logits, scale, statistics.highest, statistics.log_sum, torch.where(here, columns, -1)
        )
    slope = log_probabilities(logits, scale, statistics).exp_()
    slope.scatter_add_(1, columns[:, None], -here.to(slope.dtype)[:, None])
    return logits.copy_(slope)


def _scaled(logits: torch.Tensor, scale: float) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True).mul_(scale)


def first_id(logits: torch.Tensor, group: Any) -> int:
    """The token id of the first column of this rank's shard."""
    return 0 if group is None else torch.distributed.get_rank(group) * logits.shape[-1]


def gather(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    """[tp, ...]: ``tensor`` of every rank."""
    gathered = tensor.new_empty((torch.distributed.get_world_size(group), *tensor.shape))
    torch.distributed.all_gather_into_tensor(gathered.flatten(0, 1), tensor.contiguous(), group=group)
    return gathered


def sum_shards(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    """The sum over the shards, in place."""
    if group is not None:
        torch.distributed.all_reduce(tensor, group=group)
    return tensor
