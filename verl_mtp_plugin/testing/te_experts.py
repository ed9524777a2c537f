"""TransformerEngine's grouped layers, which are a layer's experts, in plain PyTorch and with its parameter names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor


class GroupedLinear(torch.nn.Module):
    """The experts' grouped layers: ``weight0``, ``weight1``, ... one for each local expert.

    With expert tensor parallelism a rank holds a part of each, and works on that part alone: the token dispatcher does
    all communication.
    """

    #: The dimension of a weight ``[out, in]`` that expert tensor parallelism shards.
    sharded = 0

    def __init__(
        self,
        num_gemms: int,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        init_method: Callable[[Tensor], Any] | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        self.num_gemms = num_gemms
        shape = [output_size, input_size]
        shape[self.sharded] //= parallel_state.get_expert_tensor_parallel_world_size()
        for expert in range(num_gemms):
            weight = torch.nn.Parameter(torch.empty(shape, dtype=config.params_dtype))
            if init_method is not None:
                init_method(weight)
            weight.allreduce = False  # experts' gradients have groups of their own
            # TransformerEngine is not told that the layer is sharded, and marks every weight alike.
            set_tensor_model_parallel_attributes(weight, True, 0, 1)
            self.register_parameter(f"weight{expert}", weight)

    def forward(self, tokens: Tensor, m_splits: Any) -> tuple[Tensor, None]:
        """``[t, in]``, sorted by expert, to ``[t, out]``; ``m_splits`` counts the tokens of each expert."""
        sizes = m_splits.tolist() if isinstance(m_splits, Tensor) else list(m_splits)
        parts = [part @ getattr(self, f"weight{i}").t() for i, part in enumerate(tokens.split(sizes))]
        return torch.cat(parts), None


class ColumnGroupedLinear(GroupedLinear):
    """For ``TEColumnParallelGroupedLinear``."""


class RowGroupedLinear(GroupedLinear):
    """For ``TERowParallelGroupedLinear``."""

    sharded = 1
