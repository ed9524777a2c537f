"""A process made ready for a bridge: stand-ins, the bridge, the plugin's mends, parallelism."""

from __future__ import annotations

import functools
import os
from typing import Any, Final

import torch
from torch import Tensor

from verl_mtp_plugin.patching.engine import PatchEngine
from verl_mtp_plugin.testing import cuda, linear_attention, megatron_bridge, transformer_engine

from .cells import MBRIDGE, Stack

#: What Megatron-Bridge 0.3.1 and 0.4.2 read off Qwen3-Next's config, and transformers before 5 and 5.4 keep there.
#: Put back where the installed one keeps it elsewhere; :mod:`.test_asked_transformers` does without.
READ_OFF_QWEN3_NEXT: Final[dict[str, dict[str, Any]]] = {
    "0.3.1": {"rope_theta": 10000.0, "full_attention_interval": 4},
    "0.4.2": {"full_attention_interval": 4},
}


def prepare(stack: Stack) -> None:
    """Stand-ins, the bridge, and MiMo's config class, which is not in transformers."""
    torch.set_num_threads(1)
    cuda.install()
    import megatron.core  # noqa: F401

    cuda.install_megatron()
    cuda.init_process_group()
    transformer_engine.install()
    linear_attention.install()
    from transformers import AutoConfig, Qwen2Config

    AutoConfig.register("mimo", type("MiMoConfig", (Qwen2Config,), {"model_type": "mimo"}), exist_ok=True)
    if stack.bridge == MBRIDGE:
        _prepare_mbridge()
    else:
        _prepare_megatron_bridge(stack.version)


def _prepare_mbridge() -> None:
    import safetensors
    from mbridge.models.ext.deepseek_v3 import dequant_fp8_safetensor_io as reader

    # It reads DeepSeek's tensors straight to the GPU.
    vars(reader)["safe_open"] = lambda file, framework, device: safetensors.safe_open(file, framework, device="cpu")


def _prepare_megatron_bridge(version: str) -> None:
    megatron_bridge.install()
    import transformers

    read = READ_OFF_QWEN3_NEXT.get(version, {})
    kept = transformers.Qwen3NextConfig(**read)
    for name, value in read.items():
        if not hasattr(kept, name):
            setattr(transformers.Qwen3NextConfig, name, value)
    scatter = torch.distributed.scatter

    @functools.wraps(scatter)
    def from_copies(tensor: Tensor, scatter_list: Any = None, **options: Any) -> Any:
        """A part of a tensor that is brought from the CPU to a GPU arrives as a tensor of its own."""
        return scatter(tensor, [part.contiguous() for part in scatter_list] if scatter_list else None, **options)

    torch.distributed.scatter = from_copies


def arm(engine: PatchEngine, stack: Stack) -> None:
    """The plugin's mends of this bridge's conversions."""
    from verl_mtp_plugin.bridges.mends import mbridge_deepseek, mbridge_mimo, mbridge_rope, megatron_bridge_qwen3_next

    if stack.bridge == MBRIDGE:
        engine.arm((*mbridge_rope.PATCHES, *mbridge_mimo.PATCHES, *mbridge_deepseek.PATCHES))
    else:
        engine.arm(megatron_bridge_qwen3_next.PATCHES)


def use_layout(size: int) -> None:
    """Tensor parallelism over ``size`` of the processes. A collective."""
    from megatron.core import parallel_state

    for name in [name for name in os.environ if name.startswith("NVTE_")]:  # a model says which attention it wants
        del os.environ[name]
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=size, expert_tensor_parallel_size=size)
