"""Rolls packed sequences as megatron-core does and as the plugin does, on one rank of context parallelism or more.

``python -m tests.stack.packed_roll_worker`` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. Prints, for every
kind of tensor, in how many of how many random cases both agree to the bit; and how many operations each took.
"""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import megatron.core
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from verl_mtp_plugin.patching.engine import PatchEngine
from verl_mtp_plugin.testing import cuda
from verl_mtp_plugin.training import hooks

CASES = 40
KINDS: dict[str, Callable[[int], torch.Tensor]] = {
    "tokens": lambda t: torch.arange(1, 1 + 2 * t).view(2, t),
    "mask": lambda t: torch.rand(1, t).round(),
    "flags": lambda t: torch.rand(1, t) > 0.5,
    "hidden states": lambda t: torch.randn(3, 1, t).bfloat16(),
    "strided": lambda t: torch.arange(2.0 * t).view(t, 2).t(),
}


class Operations(TorchDispatchMode):
    """Counts what reaches PyTorch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def lengths(rng: random.Random, ranks: int) -> list[int]:
    """Of sequences, some of them without a token; megatron-core 0.16 cannot roll these with context parallelism."""
    empty = ranks == 1 or not megatron.core.__version__.startswith("0.16")
    return [2 * ranks * rng.choice((0 if empty else 3, 1, 1, 2, 5)) for _ in range(rng.randint(1, 6))]


def rolled(function: Any, tensor: torch.Tensor, packed: Any, group: Any, **how: Any) -> tuple[torch.Tensor, Any]:
    """The result of a roll, and its sum; megatron-core dev's takes the bounds and gives no sum."""
    if "cu_seqlens" in inspect.signature(function).parameters:
        return function(tensor, -1, -1, packed.cu_seqlens_q, group, fill_value=1), None
    result: tuple[torch.Tensor, Any] = function(tensor, -1, -1, packed, group, **how)
    return result


def operations(function: Any, sequences: int, group: Any) -> int:
    ranks = group.size()
    packed = SimpleNamespace(cu_seqlens_q=torch.arange(sequences + 1, dtype=torch.int32) * 4 * ranks)
    with Operations() as counted:
        rolled(function, torch.ones(1, 4 * sequences), packed, group)
    return counted.count


def same(one: Any, other: Any) -> bool:
    """To the bit, None included."""
    return one is other if one is None or other is None else torch.equal(one, other) and one.dtype == other.dtype


def gradient(function: Any, tensor: torch.Tensor, packed: Any, group: Any) -> torch.Tensor | None:
    """With respect to what was rolled; None for what has none."""
    if not tensor.is_floating_point():
        return None
    source = tensor.detach().clone().requires_grad_()
    (rolled(function, source, packed, group)[0] * torch.arange(tensor.shape[-1])).sum().backward()
    return source.grad


def main() -> None:
    cuda.install()
    cuda.init_process_group()
    from megatron.core.transformer import multi_token_prediction

    name = next(n for n in ("_roll_tensor_packed_seq", hooks.ZIGZAG) if hasattr(multi_token_prediction, n))
    theirs = vars(multi_token_prediction)[name]
    engine = PatchEngine()
    engine.arm([hooks.PACKED_ROLL, hooks.PACKED_ROLL_ZIGZAG])
    decisions = {record.target.rpartition(":")[2]: str(record.decision) for record in engine.records()}
    ours = vars(multi_token_prediction)[name]
    asks = "return_sum" in inspect.signature(theirs).parameters
    group = dist.group.WORLD
    rng, found = random.Random(1), dict.fromkeys(KINDS, 0)
    torch.manual_seed(dist.get_rank())
    for number in range(CASES):
        bounds = torch.tensor([0, *lengths(rng, group.size())], dtype=torch.int32).cumsum(0).int()
        padding = 3 * (number % 2)
        if number % 4 == 2 and group.size() == 1:
            padding = -min(3, int(bounds[-1]))  # a tensor of fewer tokens than the sequences have
        packed = SimpleNamespace(cu_seqlens_q=bounds)
        for kind, make in KINDS.items():
            tensor = make(int(bounds[-1]) // group.size() + padding + 1)
            before = tensor.clone()
            how = {"return_sum": False} if asks and number % 3 == 0 else {}
            one, other = (rolled(function, tensor, packed, group, **how) for function in (theirs, ours))
            slopes = (gradient(function, tensor, packed, group) for function in (theirs, ours))
            found[kind] += all((same(one[0], other[0]), same(one[1], other[1]), same(*slopes)))
            found[kind] -= not torch.equal(tensor, before)
    counts = {whose: [operations(function, n, group) for n in (2, 50)] for whose, function in
              (("theirs", theirs), ("ours", ours))}  # fmt: skip
    print(json.dumps({"name": name, "decisions": decisions, "same": found, "cases": CASES, "operations": counts}))
    cuda.end_process()


if __name__ == "__main__":
    main()
