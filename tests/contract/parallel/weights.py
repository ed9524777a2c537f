"""Weights that depend on their names in the whole model, cut for this process; gradients put together again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..models import Draw, drawn

EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"


@dataclass(frozen=True)
class Place:
    """Where a process's parameter belongs in the whole model.

    Args:
        name: its name there.
        dimension: along which tensor parallelism has cut it; None if it is whole.
        parts: how many tensors are fused along that dimension, each cut on its own (gate and up).
    """

    name: str
    dimension: int | None
    parts: int

    def cut(self, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """The shard of ``rank``."""
        if self.dimension is None:
            return whole
        fused = whole.chunk(self.parts, self.dimension)
        return torch.cat([part.chunk(size, self.dimension)[rank] for part in fused], self.dimension)

    def join(self, shards: list[torch.Tensor]) -> torch.Tensor:
        """The inverse of :meth:`cut`, from the shards of all ranks."""
        if self.dimension is None:
            return shards[0]
        by_part = zip(*(shard.chunk(self.parts, self.dimension) for shard in shards), strict=True)
        return torch.cat([torch.cat(part, self.dimension) for part in by_part], self.dimension)


def place(model: Any, name: str, parameter: torch.Tensor, expert_rank: int) -> Place:
    """Of one of ``model.named_parameters()``."""
    if name == HEAD and model.share_embeddings_and_output_weights:
        name = EMBEDDING  # the copy on the last pipeline stage
    layer = re.match(r"decoder\.layers\.(\d+)\.", name)
    if layer:
        number = model.decoder.layers[int(layer[1])].layer_number - 1
        name = name.replace(layer[0], f"decoder.layers.{number}.", 1)
    expert = re.search(r"\.local_experts\.(\d+)\.", name)
    if expert:
        held = model.config.num_moe_experts // model.config.expert_model_parallel_size
        number = int(expert[1]) + expert_rank * held
        name = name.replace(expert[0], f".local_experts.{number}.", 1)
    is_cut = model.config.tensor_model_parallel_size > 1 and getattr(parameter, "tensor_model_parallel", False)
    gated = "linear_fc1" in name and model.config.gated_linear_unit
    return Place(name, parameter.partition_dim if is_cut else None, 2 if gated else 1)


def set_weights(model: Any, tensor_rank: int, expert_rank: int, draw: Draw = drawn) -> None:
    """The weights that ``models.set_weights`` gives to a model in one process, or this process's part of them."""
    size = model.config.tensor_model_parallel_size
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            where = place(model, name, parameter, expert_rank)
            shape = list(parameter.shape)
            if where.dimension is not None:
                shape[where.dimension] *= size
            parameter.copy_(where.cut(draw(where.name, shape), tensor_rank, size))


def setter(draw: Draw = drawn) -> Any:
    """:func:`set_weights` for the process's place in Megatron's current groups."""
    from megatron.core import parallel_state as state

    tensor_rank, expert_rank = state.get_tensor_model_parallel_rank(), state.get_expert_model_parallel_rank()
    return partial(set_weights, tensor_rank=tensor_rank, expert_rank=expert_rank, draw=draw)


def gather(model: Any, local: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by the names of the whole model, put together from both processes.

    Raises:
        AssertionError: two processes that hold the same parameter do not agree on it.
    """
    from megatron.core import parallel_state as state

    expert_rank = state.get_expert_model_parallel_rank()
    named = dict(model.named_parameters())
    if model.share_embeddings_and_output_weights and {EMBEDDING, HEAD} <= local.keys():
        # With MTP on the last of several stages Megatron uses the embedding there, and makes a head that nobody uses.
        assert not local.pop(HEAD).any(), "a gradient in a head that is not used"
    own = [(place(model, name, named[name], expert_rank), value.numpy()) for name, value in local.items()]
    everybody: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, own)  # of arrays: tensors take ten times as long to unpickle
    held: dict[Place, list[torch.Tensor]] = {}
    for where, array in (item for process in everybody for item in process):
        held.setdefault(where, []).append(torch.from_numpy(array))
    for where, values in held.items():
        same = where.dimension is not None or all(torch.equal(value, values[0]) for value in values)
        if not same:
            difference = max(float((value - values[0]).abs().max()) for value in values)
            raise AssertionError(f"{where.name} differs between processes by up to {difference:.2g}")
    return {where.name: where.join(values) for where, values in held.items()}
