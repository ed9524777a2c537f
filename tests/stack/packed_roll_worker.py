"""Rolls packed sequences as megatron-core does and as the plugin does, on one rank of context parallelism or more.

``python -m tests.stack.packed_roll_worker`` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. Prints, for every
kind of tensor, in how many of how many random cases both agree to the bit; and how many operations each took.
"""

from __future__ import annotations

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


def operations(function: Any, sequences: int, group: Any) -> int:
    ranks = group.size()
    packed = SimpleNamespace(cu_seqlens_q=torch.arange(sequences + 1, dtype=torch.int32) * 4 * ranks)
    with Operations() as counted:
        function(torch.ones(1, 4 * sequences), -1, -1, packed, group)
    return counted.count


def main() -> None:
    cuda.install()
    cuda.init_process_group()
    from megatron.core.transformer import multi_token_prediction

    theirs = vars(multi_token_prediction)["_roll_tensor_packed_seq"]
    engine = PatchEngine()
    engine.arm([hooks.PACKED_ROLL])
    (record,) = engine.records()
    ours = vars(multi_token_prediction)["_roll_tensor_packed_seq"]
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
            one, other = theirs(tensor, -1, -1, packed, group), ours(tensor, -1, -1, packed, group)
            same = torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
            found[kind] += same and one[0].dtype == other[0].dtype and torch.equal(tensor, before)
    counts = {name: [operations(function, n, group) for n in (2, 50)] for name, function in
              (("theirs", theirs), ("ours", ours))}  # fmt: skip
    print(json.dumps({"decision": str(record.decision), "same": found, "cases": CASES, "operations": counts}))
    cuda.end_process()


if __name__ == "__main__":
    main()
