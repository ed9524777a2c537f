"""The MTP loss in plain, unchunked fp64 PyTorch, and random cases to hold the chunked one against."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from verl_mtp_plugin.training.loss import Objective, Totals, chunked_loss

OBJECTIVES = ("cross_entropy", "soft_cross_entropy", "total_variation")
MASKS = ("all", "none", "holes", "one", "fractions")


@dataclass(frozen=True)
class Case:
    """Arguments of ``chunked_loss``, without tensor parallelism: ``weight`` is [v, h], ``labels`` are [b, s]."""

    hidden: torch.Tensor  # [s, b, h]
    weight: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    target_hidden: torch.Tensor  # [s, b, h]
    objective: str = OBJECTIVES[0]
    logit_scale: float = 1.0
    chunk_tokens: int | None = None

    def changed(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Case:
        """The same case in another precision; the reference then starts from the rounded values."""
        names = ("hidden", "weight", "target_hidden")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})


@dataclass(frozen=True)
class Expected:
    """``loss``: sum of mask * loss. ``gradient``: of it, [s, b, h]. ``correct``, ``tokens``: sums of the mask."""

    loss: float
    gradient: torch.Tensor
    correct: float
    tokens: float
    nats: float  # what a loss of at least one nat a token would sum to: the unit of the loss's error
    unit: float  # what a probability of one changes in the gradient: the unit of its error
    margin: float  # how far log q and log p are apart where they are closest: the kink of |q - p| is at zero


def random_case(
    seed: int, s: int, b: int, h: int, v: int, *, mask: str = "holes", dtype: torch.dtype = torch.float64, **more: Any
) -> Case:
    """Normal hidden states; logits with a standard deviation of about two."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    hidden, target, weight = normal(s, b, h), normal(s, b, h), normal(v, h) * (2 / h**0.5)
    labels = torch.randint(v, (b, s), generator=generator)
    return Case(hidden, weight, labels, random_mask(mask, b, s, generator), target, **more).to(dtype)


def random_mask(kind: str, b: int, s: int, generator: torch.Generator) -> torch.Tensor:
    """[b, s], fp32: everything, nothing, random holes, a single token, or weights with zeros among them."""
    draw = torch.rand(b, s, generator=generator)
    if kind == "one":
        return (draw == draw.max()).float()
    masks = {
        "all": torch.ones(b, s), "none": torch.zeros(b, s), "holes": (draw < 0.5).float(),
        "fractions": torch.where(draw < 0.3, torch.zeros(b, s), draw),
    }  # fmt: skip
    return masks[kind]


def token_losses(case: Case, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses [s, b], logits [s, b, v] and log q - log p (or zeros), all from full fp64 logits."""
    weight = case.weight.double()
    logits = case.logit_scale * (hidden @ weight.t())
    log_q = logits.log_softmax(-1)
    if case.objective == "cross_entropy":
        return -log_q.gather(-1, case.labels.t()[..., None]).squeeze(-1), logits, torch.full_like(log_q, 1.0)
    log_p = (case.logit_scale * (case.target_hidden.double() @ weight.t())).log_softmax(-1)
    if case.objective == "soft_cross_entropy":
        return -(log_p.exp() * log_q).sum(-1), logits, torch.full_like(log_q, 1.0)
    return 0.5 * (log_q.exp() - log_p.exp()).abs().sum(-1), logits, log_q - log_p


def reference(case: Case) -> Expected:
    """By autograd, in fp64, over the full logits. Top-1 is the first of the largest logits, found by hand."""
    hidden = case.hidden.detach().double().requires_grad_()
    mask = case.mask.t().double()
    losses, logits, apart = token_losses(case, hidden)
    total = (mask * losses).sum()
    (gradient,) = torch.autograd.grad(total, hidden)
    correct = 0.0
    for (row, column), weight in zip(torch.cartesian_prod(*map(torch.arange, mask.shape)), mask.flatten()):
        values = logits[row, column].tolist()
        correct += float(weight) * (values.index(max(values)) == int(case.labels[column, row]))
    trained = apart.detach()[mask != 0].abs()
    return Expected(
        loss=float(total.detach()),
        gradient=gradient,
        correct=correct,
        tokens=float(mask.sum()),
        nats=float((mask * losses.detach().clamp(min=1)).sum()),
        unit=float(mask.max() * case.logit_scale * case.weight.double().abs().max()),
        margin=float(trained.min()) if trained.numel() else 1.0,
    )


def differences(case: Case, loss: torch.Tensor, gradient: torch.Tensor, totals: Any) -> dict[str, float]:
    """How far what was found is from the reference; relative where the quantity has a unit."""
    return compare(reference(case), loss, gradient, totals)


def compare(expected: Expected, loss: torch.Tensor, gradient: torch.Tensor, totals: Any) -> dict[str, float]:
    largest = max(float(expected.gradient.abs().max()), 0.1 * expected.unit)
    nats = expected.nats or 1.0
    return {
        "loss": abs(float(loss) - expected.loss) / nats,
        "total": abs(float(totals.loss) - expected.loss) / nats,
        "gradient": float((gradient.double() - expected.gradient).abs().max()) / (largest or 1.0),
        "correct": abs(float(totals.correct) - expected.correct) / (expected.tokens or 1.0),
        "tokens": abs(float(totals.tokens) - expected.tokens) / (expected.tokens or 1.0),
    }


def run(case: Case, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, Totals]:
    """Loss, its gradient times ``factor`` at ``case.hidden``, totals."""
    hidden = case.hidden.detach().requires_grad_()
    loss, totals = call(case, hidden)
    (gradient,) = torch.autograd.grad(factor * loss, hidden)
    return loss.detach(), gradient, totals


def call(case: Case, hidden: torch.Tensor) -> tuple[torch.Tensor, Totals]:
    return chunked_loss(
        hidden, case.weight, case.labels, case.mask,
        objective=Objective(case.objective), target_hidden=case.target_hidden, logit_scale=case.logit_scale,
        chunk_tokens=case.chunk_tokens,
    )  # fmt: skip
