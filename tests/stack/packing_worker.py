"""Packs nested tensors as verl does and as it does with the plugin, on one rank of context parallelism or more.

``python -m tests.stack.packing_worker`` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. Prints in how many of
how many random cases both agree to the bit, and how often either cut a tensor into its sequences.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from verl_mtp_plugin.testing import cuda

CASES = 20
SEQUENCES = (4, 32)
KINDS: dict[str, Callable[[int], torch.Tensor]] = {
    "tokens": lambda length: torch.randint(1, 1000, (length,)),
    "mask": lambda length: torch.rand(length).round(),
    "vectors": lambda length: torch.randn(length, 3),
}


class Cuts(TorchDispatchMode):
    """Counts how often a nested tensor is cut into its sequences: to have them all, or to have one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten.unbind.int, torch.ops.aten.select.int) and args[0].is_nested
        return function(*args, **(kwargs or {}))


def nested(kind: Callable[[int], torch.Tensor], sequences: int, rng: random.Random) -> torch.Tensor:
    rows = [kind(rng.randint(1, 12)) for _ in range(sequences)]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def outcome(function: Any, tensor: torch.Tensor, options: dict[str, bool]) -> tuple[Any, ...]:
    """What it returns, or how it refuses: verl 0.7, and 0.8 with context parallelism, pack no vectors."""
    try:
        packed: tuple[Any, ...] = function(tensor, **options)
    except Exception as error:
        return (repr(error),)
    return packed


def same(one: Any, two: Any) -> bool:
    """What the function returns: tensors, the bounds of the packed sequences, or nothing."""
    if isinstance(one, str):
        return bool(one == two)
    if isinstance(one, torch.Tensor):
        one, two = (tensor.values() if tensor.is_nested else tensor for tensor in (one, two))
        return one.dtype == two.dtype and torch.equal(one, two)
    if one is None:
        return two is None
    return vars(one).keys() == vars(two).keys() and all(
        torch.equal(value, vars(two)[name]) if isinstance(value, torch.Tensor) else value == vars(two)[name]
        for name, value in vars(one).items()
    )


def cuts(function: Any, tensor: torch.Tensor) -> int:
    with Cuts() as counted:
        function(tensor)
    return counted.count


def main() -> None:
    cuda.install()
    import verl.models.mcore.util as util
    from megatron.core import parallel_state

    cuda.install_megatron()
    cuda.init_process_group()
    ranks = dist.get_world_size()
    parallel_state.initialize_model_parallel(context_parallel_size=ranks)
    ours = getattr(util, "preprocess_thd_engine", None) or util.preprocess_thd_no_padding
    theirs = ours.__wrapped__
    rng, agreed, packed = random.Random(0), dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    torch.manual_seed(0)
    for name, kind in KINDS.items():
        for _ in range(CASES):
            tensor = nested(kind, rng.randint(1, 9), rng)
            options = {"pre_process": rng.random() < 0.8, "need_roll": rng.random() < 0.5}
            found, wanted = (outcome(function, tensor, options) for function in (ours, theirs))
            packed[name] += len(wanted) > 1
            agreed[name] += len(found) == len(wanted) and all(same(*pair) for pair in zip(found, wanted, strict=True))
    tensors = [nested(KINDS["tokens"], sequences, rng) for sequences in SEQUENCES]
    answer = {
        "cases": CASES,
        "sequences": SEQUENCES,
        "agreed": agreed,
        "packed": packed,
        "cuts": {name: [cuts(f, tensor) for tensor in tensors] for name, f in (("ours", ours), ("theirs", theirs))},
    }
    print(json.dumps(answer), flush=True)
    cuda.end_process()


if __name__ == "__main__":
    main()
