"""The text: additions of two-digit numbers, worked out digit by digit with the carry.

``<user>47+85=?<asst>7+5+0=12;4+8+1=13;132<eos>`` where each step reads digit + digit + carry = sum, ones first.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

DIGITS: Final = 2


@dataclass(frozen=True)
class Problem:
    """A question and its one right answer."""

    question: str
    answer: str

    @classmethod
    def addition(cls, left: int, right: int) -> Problem:
        """The sum with every step and carry written out."""
        carry, steps = 0, []
        for one, other in zip(str(left)[::-1], str(right)[::-1]):
            total = int(one) + int(other) + carry
            steps.append(f"{one}+{other}+{carry}={total}")
            carry = total // 10
        return cls(f"{left}+{right}=?", ";".join([*steps, str(left + right)]))


@dataclass
class Problems:
    """A stream of training problems that never meets the held-out ones."""

    seed: int
    held_out: tuple[Problem, ...] = ()
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def take(self, count: int) -> list[Problem]:
        """The next ``count`` problems."""
        taken: list[Problem] = []
        while len(taken) < count:
            left, right = (self._random.randrange(10 ** (DIGITS - 1), 10**DIGITS) for _ in range(2))
            problem = Problem.addition(left, right)
            if problem not in self.held_out:
                taken.append(problem)
        return taken


@dataclass(frozen=True)
class Encoded:
    """Token ids ``[t]`` of a problem, and which of them the model is to learn."""

    prompt: Tensor
    response: Tensor

    @property
    def ids(self) -> Tensor:
        return torch.cat([self.prompt, self.response])

    @property
    def loss_mask(self) -> Tensor:
        return torch.cat([torch.zeros_like(self.prompt), torch.ones_like(self.response)])


def encode(tokenizer: Any, problem: Problem) -> Encoded:
    """One token for each character, and the marks around them."""
    prompt = tokenizer.convert_tokens_to_ids(["<user>", *problem.question, "<asst>"])
    response = tokenizer.convert_tokens_to_ids([*problem.answer, "<eos>"])
    return Encoded(torch.tensor(prompt), torch.tensor(response))


def verl_batch(tokenizer: Any, problems: list[Problem]) -> Any:
    """The TensorDict that verl's engines take: sequences of different lengths, not padded."""
    from verl.utils import tensordict_utils
    from verl.utils.dataset.dataset_utils import DatasetPadMode

    encoded = [encode(tokenizer, problem) for problem in problems]

    def jagged(rows: list[Tensor]) -> Tensor:
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    tensors = {
        "input_ids": jagged([e.ids for e in encoded]),
        "position_ids": jagged([torch.arange(len(e.ids)) for e in encoded]),
        "loss_mask": jagged([e.loss_mask for e in encoded]),
    }
    options = {
        "use_remove_padding": True,
        "use_dynamic_bsz": True,
        "max_token_len_per_gpu": 8192,
        "micro_batch_size_per_gpu": len(problems),
        "global_batch_size": len(problems),
        "temperature": 1.0,
        "pad_mode": DatasetPadMode.NO_PADDING,
        "pad_token_id": tokenizer.pad_token_id,
        "use_fused_kernels": False,
    }
    return tensordict_utils.get_tensordict(tensor_dict=tensors, non_tensor_dict=options)
