"""What a batch of answers says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def tokens(answers: Sequence[Any]) -> list[list[int]]:
    return [list(answer.token_ids) for answer in answers]


def same(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many answers are token-identical."""
    return sum(a == b for a, b in zip(tokens(one), tokens(other), strict=True))


def acceptance(answers: Sequence[Any]) -> dict[str, float]:
    """Tokens per verify step (SGLang's count of steps), and what verl makes of it: accept length and rate."""
    fields = [answer.extra_fields for answer in answers]
    steps, accepted, drafted = (
        sum(int(field.get(f"spec_num_{name}") or 0) for field in fields)
        for name in ("verify_steps", "accepted_tokens", "draft_tokens")
    )
    if not steps:
        return {}
    return {
        "tokens_per_step": sum(map(len, tokens(answers))) / steps,
        "accept_length": 1 + accepted / steps,
        "accept_rate": accepted / drafted if drafted else 0.0,
    }


def logprob_distance(one: Sequence[Any], other: Sequence[Any]) -> float:
    """The largest difference of two log-probs of the same token; infinite where one lacks them."""
    pairs = [pair for a, b in zip(one, other) for pair in zip(a.log_probs or [], b.log_probs or [])]
    complete = all(len(a.log_probs or []) == len(b.log_probs or []) > 0 for a, b in zip(one, other))
    return max(abs(a - b) for a, b in pairs) if complete else float("inf")


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, greatest and least."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return {"median": median, "max": ordered[-1], "min": ordered[0]}
