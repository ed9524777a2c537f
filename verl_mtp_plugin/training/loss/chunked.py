"""The loss of a draft head, without ever holding the logits of all tokens.

For each chunk of trained tokens the logits, the loss, the top-1 hits and the gradient with respect to the hidden
states are computed in the forward pass, and the logits freed. What is kept for the backward pass is one
``[tokens, hidden]`` gradient, so memory does not grow with the vocabulary times the sequence. The same idea, for the
weight's gradient too, is in Liger Kernel (arXiv:2410.10989); here the vocabulary projection is frozen and gets none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from . import softmax_kernels
from .objectives import FrozenHead, Objective
from .token_rows import TokenRows

#: Bytes of logits and probabilities alive at a time, from which the automatic chunk size follows.
CHUNK_BYTES: Final = 320 * 2**20
SOFT_CHUNK_BYTES: Final = 768 * 2**20  # two distributions; smaller chunks would starve the matrix products
CHUNK_MULTIPLE, MAX_CHUNK_TOKENS = 256, 8192


@dataclass(frozen=True)
class Totals:
    """Sums over the trained tokens of this rank's micro-batch: 0-dim, on the device, without a graph."""

    loss: torch.Tensor  # sum of mask * loss
    correct: torch.Tensor  # sum of mask where the most probable token is the label
    tokens: torch.Tensor  # sum of mask


def chunked_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor,
    *,
    objective: Objective = Objective.CROSS_ENTROPY,
    target_hidden: torch.Tensor | None = None,
    logit_scale: float = 1.0,
    tensor_parallel_group: Any = None,
    sequence_parallel: bool = False,
    chunk_tokens: int | None = None,
) -> tuple[torch.Tensor, Totals]:
    """The sum over tokens of ``mask * loss``, which trains ``hidden`` and nothing else.

    Args:
        hidden: the draft head's hidden states, [s, b, h]; with sequence parallelism [s / tp, b, h].
        weight: the vocabulary projection, [v / tp, h]. It gets no gradient.
        labels: token ids, [b, s].
        mask: weight of each token, [b, s]; where it is zero nothing is computed.
        objective: see :class:`Objective`.
        target_hidden: the policy's hidden states whose next token is the same, shaped as ``hidden``; for the soft
            objectives. No gradient.
        logit_scale: multiplies all logits (MuP).
        tensor_parallel_group: the group over which the vocabulary is sharded; None if it is not.
        sequence_parallel: whether the hidden states are shards of the sequence.
        chunk_tokens: tokens per chunk; None for as many as fit :data:`CHUNK_BYTES`.

    Returns:
        The loss (0-dim), equal on all ranks of the tensor-parallel group, and its totals.

    Raises:
        ValueError: shapes that do not belong together, a trained token whose label is no token id, a soft objective
            without ``target_hidden``, or a chunk size below one.
    """
    if objective is not Objective.CROSS_ENTROPY and target_hidden is None:
        raise ValueError(f"objective {objective.value} without target_hidden: expected the policy's hidden states")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens}: expected at least 1")
    group = tensor_parallel_group
    if group is not None and torch.distributed.get_world_size(group) == 1:
        group = None
    with torch.no_grad():
        rows = TokenRows(hidden, labels, mask, group, sequence_parallel)
        _check_labels(rows, weight.shape[0] * (1 if group is None else torch.distributed.get_world_size(group)))
        head = FrozenHead(weight.detach(), objective, logit_scale, group)
        ranges = rows.ranges(chunk_tokens or automatic_chunk(weight, objective))
        target = None if objective is Objective.CROSS_ENTROPY else target_hidden
        wants_gradient = hidden.requires_grad
    if torch.is_grad_enabled() and wants_gradient:
        loss, correct, tokens = _ChunkedLoss.apply(hidden, target, rows, head, ranges)
    else:
        loss, correct, tokens, _ = _run(hidden, target, rows, head, ranges, with_gradient=False)
    return loss, Totals(loss.detach(), correct, tokens)


def automatic_chunk(weight: torch.Tensor, objective: Objective = Objective.CROSS_ENTROPY) -> int:
    """Tokens per chunk such that what is alive of its vocabulary-sized tensors stays within :data:`CHUNK_BYTES`.

    Never fewer than :data:`CHUNK_MULTIPLE`, below which the matrix products are slow.
    """
    accumulate = torch.promote_types(weight.dtype, torch.float32).itemsize
    per_logit, budget = weight.element_size(), CHUNK_BYTES
    if objective is not Objective.CROSS_ENTROPY:
        budget = SOFT_CHUNK_BYTES
        per_logit = 2 * weight.element_size() + 4 * accumulate  # both logits, log q, p, and what is derived from them
    elif not softmax_kernels.usable(weight):
        per_logit += 2 * accumulate
    tokens = budget // (weight.shape[0] * per_logit) // CHUNK_MULTIPLE * CHUNK_MULTIPLE
    return max(CHUNK_MULTIPLE, min(MAX_CHUNK_TOKENS, tokens))


def _check_labels(rows: TokenRows, vocabulary: int) -> None:
    lowest, highest = rows.label_range()
    if lowest < 0 or highest >= vocabulary:
        raise ValueError(
            f"labels from {lowest} to {highest} at trained positions: expected token ids from 0 to {vocabulary - 1}. "
            "Positions without a label (-100) need a loss mask of 0."
        )


class _ChunkedLoss(torch.autograd.Function):
    """The gradient is known when the loss is; the backward pass only scales it and puts it in its place."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, target: Any, rows: TokenRows, head: FrozenHead, ranges: Any) -> Any:
        loss, correct, tokens, gradient = _run(hidden, target, rows, head, ranges, with_gradient=True)
        ctx.save_for_backward(gradient, rows.index)
        ctx.shape = hidden.shape
        ctx.mark_non_differentiable(correct, tokens)
        return loss, correct, tokens

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, scale: torch.Tensor, *_: Any) -> Any:
        gradient, index = ctx.saved_tensors
        placed = gradient.new_zeros(ctx.shape).flatten(0, 1)
        placed.index_copy_(0, index, gradient)
        placed.mul_(scale)  # the mean's divisor and the trainer's loss scale; computed in fp32
        return placed.view(ctx.shape), None, None, None, None


def _run(
    hidden: torch.Tensor,
    target: torch.Tensor | None,
    rows: TokenRows,
    head: FrozenHead,
    ranges: list[range],
    *,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, hits, tokens, and the gradient [n, h] of the loss for this rank's trained tokens."""
    states = hidden.detach().flatten(0, 1)
    policy = None if target is None else target.detach().flatten(0, 1)
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    loss, correct, tokens = (hidden.new_zeros((), dtype=accumulate) for _ in range(3))
    gradient = states.new_empty(len(rows.index) if with_gradient else 0, states.shape[1])
    done = 0
    for chunk in ranges:
        labels, mask = rows.labels_and_mask(chunk)
        mask = mask.to(accumulate)
        wanted = None if policy is None else rows.gather(policy, chunk)
        token_loss, best, raw = head(rows.gather(states, chunk), wanted, labels, with_gradient=with_gradient)
        loss += torch.dot(mask, token_loss)
        correct += torch.dot(mask, (best == labels).to(accumulate))
        tokens += mask.sum()
        if raw is not None:
            own = rows.give_back(raw.mul_((mask * head.scale)[:, None].to(raw.dtype)), chunk)
            gradient[done : done + len(own)] = own
            done += len(own)
    return loss, correct, tokens, gradient
