"""The sampler's view of a set of weights: acceptance and losses on problems that were never trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import model
import torch
from data import Problem, encode
from sampler import Sampled, TinyMiMo, sample
from torch import Tensor

TEMPERATURES: Final = (0.0, 1.0)
#: Problems whose losses are taken: enough for two digits.
LOSS_PROBLEMS: Final = 64


@dataclass(frozen=True)
class Measurement:
    """The sampler's view of the exported weights after ``step`` optimizer steps."""

    step: int
    acceptance: dict[str, float]  # by temperature
    solved: float  # right to the last character, at temperature 0
    main_loss: float  # nats per token, on held-out problems
    draft_loss: float


def measure(
    weights: Mapping[str, Tensor], tokenizer: Any, problems: Sequence[Problem], step: int
) -> tuple[Measurement, Sampled]:
    """Sample answers at every temperature; also returns those at temperature 0."""
    tiny = TinyMiMo(weights, model.CONFIG)
    encoded = [encode(tokenizer, problem) for problem in problems]
    prompts = torch.stack([e.prompt for e in encoded])
    rounds = {t: sample(tiny, prompts, temperature=t, end=model.EOS, seed=step) for t in TEMPERATURES}
    greedy = rounds[0.0]
    solved = sum(map(_is_right, greedy.ids, (e.response for e in encoded)))
    main = _Mean()
    for e in encoded[:LOSS_PROBLEMS]:
        main.add(-tiny.log_probs(e.ids), e.loss_mask[1:])
    measured = Measurement(
        step=step,
        acceptance={f"{t:g}": sampled.acceptance for t, sampled in rounds.items()},
        solved=solved / len(encoded),
        main_loss=main.value,
        draft_loss=draft_loss(weights, tokenizer, problems[:LOSS_PROBLEMS]),
    )
    return measured, greedy


def draft_loss(weights: Mapping[str, Tensor], tokenizer: Any, problems: Sequence[Problem]) -> float:
    """The MTP layer's loss over the responses, nats per token: what training minimises."""
    tiny, mean = TinyMiMo(weights, model.CONFIG), _Mean()
    for problem in problems:
        e = encode(tokenizer, problem)
        mean.add(-tiny.draft_log_probs(e.ids), e.loss_mask[2:])
    return mean.value


def log_prob_differences(
    weights: Mapping[str, Tensor], tokenizer: Any, problems: Sequence[Problem], recomputed: Sequence[Tensor]
) -> Tensor:
    """How far the engine's log-probs ``[t - 1]`` of each problem are from ours, over the responses."""
    tiny = TinyMiMo(weights, model.CONFIG)
    differences = []
    for problem, found in zip(problems, recomputed):
        e = encode(tokenizer, problem)
        differences.append((found - tiny.log_probs(e.ids)).abs()[e.loss_mask[1:].bool()])
    return torch.cat(differences)


class _Mean:
    """A mean over masked tokens, filled sequence by sequence."""

    def __init__(self) -> None:
        self._sum = self._count = 0.0

    def add(self, values: Tensor, mask: Tensor) -> None:
        self._sum += float((values * mask).sum())
        self._count += float(mask.sum())

    @property
    def value(self) -> float:
        return self._sum / self._count


def _is_right(drawn: Tensor, response: Tensor) -> bool:
    return len(drawn) >= len(response) and torch.equal(drawn[: len(response)], response)
