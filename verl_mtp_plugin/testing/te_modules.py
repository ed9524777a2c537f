"""TransformerEngine's norms and linear layers in plain PyTorch, with TransformerEngine's parameter names.

The parallel ones are megatron-core's own ColumnParallelLinear and RowParallelLinear, so that tensor and sequence
parallelism are Megatron's and not ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor


def _accepted(cls: type, kwargs: dict[str, Any]) -> dict[str, Any]:
    """TransformerEngine's layers take options that Megatron's do not know, names of communication buffers for one."""
    known = inspect.signature(cls).parameters
    return {name: value for name, value in kwargs.items() if name in known}


def _norm_parameter(size: int, fill: float, config: Any) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.full((size,), fill, dtype=config.params_dtype))
    parameter.sequence_parallel = config.sequence_parallel
    return parameter


def _normalize(hidden: Tensor, weight: Tensor, bias: Tensor | None, config: Any, eps: float) -> Tensor:
    """RMSNorm or LayerNorm of ``[..., h]`` in fp32, as ``config.normalization`` says."""
    scale = weight.float() + (1 if config.layernorm_zero_centered_gamma else 0)
    if config.normalization == "RMSNorm":
        return F.rms_norm(hidden.float(), hidden.shape[-1:], scale, eps).to(hidden.dtype)
    shift = None if bias is None else bias.float()
    return F.layer_norm(hidden.float(), hidden.shape[-1:], scale, shift, eps).to(hidden.dtype)


class Norm(torch.nn.Module):
    """For ``TENorm``."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__()
        self.config, self.eps = config, eps
        gamma = 0.0 if config.layernorm_zero_centered_gamma else 1.0
        self.weight = _norm_parameter(hidden_size, gamma, config)
        self.bias = None if config.normalization == "RMSNorm" else _norm_parameter(hidden_size, 0.0, config)

    def forward(self, hidden: Tensor) -> Tensor:
        return _normalize(hidden, self.weight, self.bias, self.config, self.eps)


class ColumnLinear(ColumnParallelLinear):
    """For ``TEColumnParallelLinear``."""

    def __init__(self, input_size: int, output_size: int, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, **_accepted(ColumnParallelLinear, kwargs))


class RowLinear(RowParallelLinear):
    """For ``TERowParallelLinear``."""

    def __init__(self, input_size: int, output_size: int, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, **_accepted(RowParallelLinear, kwargs))


class LayerNormColumnLinear(ColumnParallelLinear):
    """For ``TELayerNormColumnParallelLinear``: the norm before the layer is part of it."""

    def __init__(self, input_size: int, output_size: int, *, config: Any, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, config=config, **_accepted(ColumnParallelLinear, kwargs))
        gamma = 0.0 if config.layernorm_zero_centered_gamma else 1.0
        self.layer_norm_weight = _norm_parameter(input_size, gamma, config)
        rms = config.normalization == "RMSNorm"
        self.layer_norm_bias = None if rms else _norm_parameter(input_size, 0.0, config)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        eps = self.config.layernorm_epsilon
        normed = _normalize(hidden, self.layer_norm_weight, self.layer_norm_bias, self.config, eps)
        return super().forward(normed, *args, **kwargs)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Megatron's, which lists weight and bias only, and the norm's parameters too."""
        state = self.state_dict(prefix="", keep_vars=True)
        return make_sharded_tensors_for_checkpoint(state, prefix, {"weight": 0, "bias": 0}, sharded_offsets)


class Linear(torch.nn.Linear):
    """For ``TELinear`` where every rank holds the whole layer (``parallel_mode`` None or "duplicated")."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        init_method: Callable[[Tensor], Any] | None = None,
        bias: bool = False,
        parallel_mode: str | None = None,
        **unused: Any,
    ) -> None:
        if parallel_mode not in (None, "duplicated"):
            raise NotImplementedError(f"TELinear with parallel_mode={parallel_mode!r}: only duplicated is stood in for")
        super().__init__(input_size, output_size, bias=bias, dtype=config.params_dtype)
        self.parallel_mode = parallel_mode  # by which Megatron-Bridge knows that the weight is not sharded
        if init_method is not None:
            init_method(self.weight)

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        return super().forward(hidden), None
