"""What the chunked loss never makes: logits of all tokens, a copy of the head, work for tokens without a loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from verl_mtp_plugin.training.loss import Objective, automatic_chunk

from .loss_oracle import OBJECTIVES, Case, call, random_case

V, H = 101, 6


class Largest(TorchDispatchMode):
    """Elements of the largest storage that an operation brought into being; views of older ones do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in old:
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return made


def train(case: Case, *, backward: bool = True) -> None:
    loss, _ = call(case, case.hidden.detach().requires_grad_(backward))
    if backward:
        loss.backward()


def largest(case: Case) -> int:
    with Largest() as seen:
        train(case)
    return seen.elements


def flops(case: Case, *, backward: bool = True) -> int:
    with FlopCounterMode(display=False) as counter:
        train(case, backward=backward)
    return int(counter.get_total_flops())


def test_the_recorder_sees_what_a_plain_loss_makes() -> None:
    case = random_case(1, 48, 2, H, V)
    hidden = case.hidden.requires_grad_()
    with Largest() as seen:
        logits = hidden @ case.weight.t()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), case.labels.t().flatten()).backward()
    assert seen.elements == 48 * 2 * V


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_logits_of_more_than_a_chunk(objective: str, scale: float, dtype: torch.dtype) -> None:
    case = random_case(1, 48, 2, H, V, mask="all", objective=objective, logit_scale=scale, dtype=dtype, chunk_tokens=8)
    assert largest(case) == 8 * V  # 808; all logits were 9696


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_head_is_never_copied(objective: str, dtype: torch.dtype) -> None:
    case = random_case(2, 8, 1, 32, V, mask="all", objective=objective, dtype=dtype, chunk_tokens=4, logit_scale=0.5)
    assert largest(case) == 4 * V < 32 * V


def test_memory_grows_with_the_hidden_states_alone() -> None:
    """Four times the tokens, the same chunks: what is largest is a chunk's logits, then the gradient."""
    sizes = {s: largest(random_case(3, s, 1, H, V, mask="all", chunk_tokens=8)) for s in (64, 128, 512)}
    assert sizes == {64: 8 * V, 128: 8 * V, 512: 512 * H}


def test_the_automatic_chunk() -> None:
    """At a real size, within a gigabyte of logits and log-probabilities; few tokens still make a useful chunk."""
    head = torch.empty(151_680, 4096, dtype=torch.bfloat16, device="meta")
    for objective in Objective:
        tokens = automatic_chunk(head, objective)
        copies = 1 if objective is Objective.CROSS_ENTROPY else 2
        assert tokens >= 128
        assert tokens * 151_680 * (2 + 4) * copies <= 2**30
    case = random_case(4, 20_000, 1, 2, 16, mask="all")
    assert largest(case) < 20_000 * 16


def test_tokens_without_a_loss_cost_no_multiplication() -> None:
    whole = random_case(5, 32, 2, H, V, mask="all", chunk_tokens=8)
    half = whole.changed(mask=torch.ones(2, 32) * (torch.arange(32) % 2))
    assert flops(whole) == 2 * (2 * 64 * H * V)  # one product for the logits, one for the gradient
    assert flops(half) == flops(whole) // 2
    assert flops(whole.changed(mask=torch.zeros(2, 32))) == 0
    assert flops(whole, backward=False) == flops(whole) // 2
