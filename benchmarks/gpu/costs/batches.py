"""Random sequences as verl's engines take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def lengths(tokens: int, shortest: int, longest: int, generator: torch.Generator) -> Iterator[int]:
    """Random ones, ``tokens`` in all or a little more."""
    total = 0
    while total < tokens:
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        total += length
        yield length


def batch(tokens: int, shortest: int, longest: int, vocabulary: int, seed: int) -> Any:
    """A TensorDict of sequences whose first quarter is the prompt."""
    from verl.utils import tensordict_utils
    from verl.utils.dataset.dataset_utils import DatasetPadMode

    generator = torch.Generator().manual_seed(seed)
    each = list(lengths(tokens, shortest, longest, generator))

    def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    tensors = {
        "input_ids": jagged([torch.randint(2, vocabulary, (n,), generator=generator) for n in each]),
        "position_ids": jagged([torch.arange(n) for n in each]),
        "loss_mask": jagged([(torch.arange(n) >= n // 4).long() for n in each]),
    }
    options = {
        "use_remove_padding": True,
        "use_dynamic_bsz": True,
        "micro_batch_size_per_gpu": len(each),
        "global_batch_size": len(each),
        "temperature": 1.0,
        "pad_mode": DatasetPadMode.NO_PADDING,
        "pad_token_id": 0,
        "use_fused_kernels": False,
    }
    return tensordict_utils.get_tensordict(tensor_dict=tensors, non_tensor_dict=options)
