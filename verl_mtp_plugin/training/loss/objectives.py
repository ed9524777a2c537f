"""What a draft head can be trained for, and the frozen vocabulary projection on which it is judged."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch

from .vocabulary import RowStatistics, cross_entropy_slope, first_id, log_probabilities, row_statistics, sum_shards


class Objective(str, Enum):
    """What the draft distribution q is trained for.

    With speculative sampling a drafted token is accepted with probability ``sum(min(p, q))`` (arXiv:2211.17192), p
    being the policy's distribution: ``1 - total variation``.
    """

    CROSS_ENTROPY = "cross_entropy"  # -log q[label]: the tokens that were sampled, as upstream
    SOFT_CROSS_ENTROPY = "soft_cross_entropy"  # -sum(p log q): the policy's whole distribution
    TOTAL_VARIATION = "total_variation"  # 0.5 * sum(|p - q|): the rejection rate itself


class FrozenHead:
    """The frozen vocabulary projection, and the objective on one chunk of tokens."""

    def __init__(self, weight: torch.Tensor, objective: Objective, scale: float, group: Any) -> None:
        self.scale = scale
        self._weight = weight
        self._objective = objective
        self._group = group

    def __call__(
        self, states: torch.Tensor, target: torch.Tensor | None, labels: torch.Tensor, *, with_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Loss [n], most probable token [n], and this shard's part of d loss / d (states * scale) [n, h]."""
        logits = states @ self._weight.t()  # [n, v / tp]
        statistics = row_statistics(logits, self.scale, self._group)
        if target is None:
            loss, slope = self._cross_entropy(logits, statistics, labels, with_gradient)
        else:
            log_q = log_probabilities(logits, self.scale, statistics)
            policy = target @ self._weight.t()
            p = log_probabilities(policy, self.scale, row_statistics(policy, self.scale, self._group)).exp_()
            soft = self._objective is Objective.SOFT_CROSS_ENTROPY
            loss, derivative = (self._soft_cross_entropy if soft else self._total_variation)(log_q, p)
            slope = logits.copy_(derivative)  # the logits' memory is used again
        return loss, statistics.best, slope @ self._weight if with_gradient else None

    def _cross_entropy(
        self, logits: torch.Tensor, statistics: RowStatistics, labels: torch.Tensor, with_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-log q[label], and q - onehot(label)."""
        columns = labels - first_id(logits, self._group)
        here = (columns >= 0) & (columns < logits.shape[1])  # all of them without tensor parallelism
        columns = columns.clamp(0, logits.shape[1] - 1)
        label_logit = logits.gather(1, columns[:, None]).squeeze(1).to(statistics.highest.dtype) * self.scale
        loss = statistics.log_sum - (label_logit - statistics.highest)
        if self._group is not None:
            loss = sum_shards(torch.where(here, loss, 0.0), self._group)  # one shard has it
        if with_gradient:
            logits = cross_entropy_slope(logits, self.scale, statistics, columns, here)
        return loss, logits

    def _soft_cross_entropy(self, log_q: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """-sum(p log q), and q - p."""
        loss = sum_shards(-(p * log_q).sum(dim=-1), self._group)
        return loss, log_q.exp_().sub_(p)

    def _total_variation(self, log_q: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """0.5 * sum(|q - p|), and q * (g - sum(q g)) with g = 0.5 * sign(q - p)."""
        q = log_q.exp_()
        difference = q - p
        sign = p.copy_(difference).sign_().mul_(0.5)
        sums = torch.stack([0.5 * difference.abs_().sum(dim=-1), (q * sign).sum(dim=-1)])
        loss, mean = sum_shards(sums, self._group)
        return loss, sign.sub_(mean[:, None]).mul_(q)
