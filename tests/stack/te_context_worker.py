"""One rank of a context-parallel attention stand-in; prints how far it is from the whole computation on one rank.

``python -m tests.stack.te_context_worker`` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verl_mtp_plugin.testing import cuda

HEADS, KV_HEADS, DIM = 4, 2, 8
#: Lengths of packed sequences: multiples of twice the ranks.
LENGTHS = (8, 4, 12)


def tensors(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(*shape, n, DIM, generator=generator) for n in (HEADS, KV_HEADS, KV_HEADS))
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def compare(attention: Any, whole: Any, parts: tuple[Tensor, ...], held: Tensor, **arguments: Any) -> float:
    """Largest difference of outputs and of gradients, between this rank's part and the whole's."""
    expected = whole(*parts, **arguments)
    (expected[held] ** 2).sum().backward()
    local = [part.detach()[held].requires_grad_() for part in parts]
    found = attention(*local, **arguments)
    (found**2).sum().backward()
    worst = float((found - expected[held]).abs().max())
    for part, mine in zip(parts, local):
        assert part.grad is not None
        assert mine.grad is not None
        total = part.grad.clone()
        dist.all_reduce(total)  # each rank's loss covers its own tokens
        worst = max(worst, float((mine.grad - total[held]).abs().max()))
    return worst


def main() -> None:
    cuda.install()
    cuda.init_process_group()
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(context_parallel_size=dist.get_world_size())
    from verl_mtp_plugin.testing.te_attention import DotProductAttention, held_positions

    config: Any = SimpleNamespace(kv_channels=DIM)
    alone = SimpleNamespace(cp=dist.new_subgroups(1)[0])
    attention, whole = DotProductAttention(config), DotProductAttention(config, pg_collection=alone)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)
    packed = SimpleNamespace(cu_seqlens_q=cu_seqlens)
    held = held_positions(cu_seqlens.tolist(), ranks)[rank]
    thd = compare(attention, whole, tensors(sum(LENGTHS)), held, packed_seq_params=packed)
    held = held_positions([0, 16], ranks)[rank]
    sbhd = compare(attention, whole, tensors(16, 3), held)
    print(json.dumps({"thd": thd, "sbhd": sbhd}))
    cuda.end_process()


if __name__ == "__main__":
    main()
