"""What Megatron's MTP layer holds, put together from the ranks' shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from .expected import INNER

#: What megatron-core calls the transformer layer inside an MTP layer, until 0.16 and from 0.17 on.
INNER_NAMES: Final = ("transformer_layer.", "mtp_model_layer.")


def _gated(shards: list[Tensor]) -> Tensor:
    """Every rank holds its part of the gate, and below it its part of what is gated."""
    return torch.cat([half for halves in zip(*(shard.chunk(2) for shard in shards)) for half in halves])


def _columns(shards: list[Tensor]) -> Tensor:
    return torch.cat(shards, dim=1)


#: Parts of names, and how the shards make one tensor. All others must be the same on every rank.
_JOINS: Final[dict[str, Callable[[list[Tensor]], Tensor | None]]] = {
    "linear_fc1.weight": _gated,
    "linear_fc2.weight": _columns,
    "linear_proj.weight": _columns,
    "linear_qkv.weight": torch.cat,
    "linear_qkv.bias": torch.cat,
    "linear_q_up_proj.weight": torch.cat,
    "linear_kv_up_proj.weight": torch.cat,
    "eh_proj.weight": torch.cat,
}


def mtp_layer(model: Any, group: Any) -> dict[str, Tensor | None]:
    """The first MTP layer's whole tensors, by the names of :mod:`.expected`. A collective.

    Returns:
        None for a tensor that every rank should hold and that is not the same on all.
    """
    made: dict[str, Tensor | None] = {}
    for name, tensor in model.mtp.layers[0].state_dict().items():
        if "_extra_state" in name or not isinstance(tensor, Tensor):
            continue
        shards = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(shards, tensor.detach().contiguous(), group=group)
        for inner in INNER_NAMES:
            name = name.replace(inner, INNER)
        join = next((join for part, join in _JOINS.items() if part in name), _same)
        made[name] = join(shards)
    return made


def _same(shards: list[Tensor]) -> Tensor | None:
    return shards[0] if all(torch.equal(shards[0], shard) for shard in shards) else None
