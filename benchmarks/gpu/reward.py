"""The reward of data.py's problems, as verl's ``reward.custom_reward_function`` calls it: exact match of the answer."""

from __future__ import annotations

import re
from typing import Any

ANSWER = re.compile(r"Answer: (\d+)\Z")


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **_: Any
) -> float:
    """1.0 for a response that ends in the right ``Answer: ...``, else 0.0; a response cut short has no answer."""
    text = re.sub(r"(<\|\w+\|>|\s)+\Z", "", solution_str)  # verl may leave the end-of-text token in
    found = ANSWER.search(text)
    return float(found is not None and found[1] == str(ground_truth))
