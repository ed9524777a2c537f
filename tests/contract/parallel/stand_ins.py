"""What several processes on a CPU need besides ``verl_mtp_plugin.testing.cuda``."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch

TRACKERS = "megatron.core.transformer.moe.moe_logging"


def install() -> None:
    """Once per process, after Megatron was imported and before a model is built."""
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    from verl_mtp_plugin.testing.te_modules import Norm

    # The local specs' norm refuses sequence parallelism: its weights do not say that their gradients are partial.
    # TransformerEngine's do, and so do those of its stand-in.
    WrappedTorchNorm.__new__ = lambda cls, config, hidden_size, eps=1e-5, **unused: Norm(config, hidden_size, eps)
    torch.distributed.all_to_all_single = _with_lists(torch.distributed.all_to_all_single)


def _with_lists(all_to_all_single: Any) -> Any:
    """Megatron's token dispatcher brings split sizes from the GPU as lists, but leaves those on a CPU as tensors."""

    @functools.wraps(all_to_all_single)
    def call(*args: Any, **kwargs: Any) -> Any:
        return all_to_all_single(*args, **{k: v.tolist() if torch.is_tensor(v) else v for k, v in kwargs.items()})

    return call


def forget_expert_losses() -> None:
    """Megatron keeps the experts' auxiliary losses in a table with one row for each layer of the first model."""
    if importlib.util.find_spec(TRACKERS):
        importlib.import_module(TRACKERS).destroy_moe_metrics_tracker()
    else:
        owner: Any = importlib.import_module("megatron.core.transformer.moe.moe_utils")
        owner.get_moe_layer_wise_logging_tracker().clear()
