"""One mean over all trained tokens of an optimizer step, however it is cut into micro-batches and ranks.

megatron-core and verl divide each micro-batch's MTP loss by its own number of trained tokens, on each context-parallel
rank by that rank's. The gradient is then a mean of means: it depends on the cut, and a rank with few trained tokens
weighs as much as one with many. Where the step's own count is known (:func:`step_tokens`, which the patches on verl's
engine provide) each token weighs the same; elsewhere upstream's normalization is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class StepTokens:
    """What one micro-batch must know of the optimizer step that it is a part of.

    Args:
        per_depth: trained tokens of each MTP depth, of all micro-batches and data- and context-parallel ranks.
        ranks: data- times context-parallel ranks, by which Megatron divides the sum of their gradients.
        divisor: tokens by which Megatron divides gradients instead, if ``calculate_per_token_loss`` is set.
    """

    per_depth: tuple[float, ...]
    ranks: int
    divisor: float = 1.0

    def weight(self, depth: int, *, per_token: bool) -> float:
        """What the sum of a micro-batch's token losses is multiplied by, such that the step's gradient is the mean's.

        Args:
            depth: counted from 0.
            per_token: the model's ``calculate_per_token_loss``.
        """
        tokens = self.per_depth[depth]
        return (self.divisor if per_token else self.ranks) / tokens if tokens else 0.0


_current: StepTokens | None = None


@contextmanager
def step_tokens(tokens: StepTokens | None) -> Iterator[None]:
    """Within it, MTP losses are normalized by ``tokens``. The schedule's division by micro-batches is undone."""
    global _current
    before, _current = _current, tokens
    try:
        yield
    finally:
        _current = before


def current() -> StepTokens | None:
    """The tokens of the step that is running, if somebody has counted them."""
    return _current


class LossScaleOnly(torch.autograd.Function):
    """Identity whose backward pass replaces the schedule's factor by the loss scale alone.

    Megatron's schedules hand ``loss_scale / num_microbatches`` to the MTP loss; a sum that is divided by the whole
    step's tokens must not be divided by its micro-batches again.
    """

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, config: Any) -> torch.Tensor:
        ctx.config = config
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return loss_scale(ctx.config, gradient), None


def loss_scale(config: Any, like: torch.Tensor) -> torch.Tensor:
    """The optimizer's loss scale (1 without fp16), as Megatron's schedules take it from the model's config."""
    one = torch.ones(1, dtype=torch.float32, device=like.device)
    own = getattr(config, "mtp_grad_scale_func", None)  # megatron-core >= 0.19
    if own is not None:
        one = one * own()
    elif config.grad_scale_func is not None:
        one = config.grad_scale_func(one)
    return one.to(like.dtype).expand_as(like) if like.dim() else one.to(like.dtype).squeeze()
