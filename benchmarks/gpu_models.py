"""GPTModels of a real size for the benchmarks on a GPU, and processes with one megatron-core release on their path."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import results_page

sys.path.insert(0, str(results_page.ROOT))

from tests.contract import stacks

VERL: Final = stacks.VERL[-1]


@dataclass(frozen=True)
class Size:
    """Hidden size, layers, feed-forward size and vocabulary. Heads are 128 wide, or as wide as the model."""

    hidden: int = 4096
    layers: int = 4
    ffn: int = 12_288
    vocabulary: int = 151_680

    @property
    def heads(self) -> int:
        return max(1, self.hidden // 128)


def run_worker(script: str, megatron_core: str, arguments: list[str], seconds: float) -> int:
    """Run ``benchmarks/SCRIPT`` with this release first on PYTHONPATH; its exit status, -1 if it took too long."""
    path = os.pathsep.join([stacks.python_path(stacks.Cell("none", megatron_core)), os.environ.get("PYTHONPATH", "")])
    # Segments that can grow: a contender that needs most of the memory must not fail because of holes.
    env = {**os.environ, "PYTHONPATH": path, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script)), *arguments]
    try:
        return subprocess.run(command, cwd=results_page.ROOT, env=env, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        return -1


def prepare(megatron_core: str, device: str) -> tuple[Any, dict[str, str]]:
    """Plugin active, Megatron initialized, PyTorch at its defaults for speed; device and versions."""
    import torch

    from tests.contract.process import prepare as prepare_process

    world, versions, _ = prepare_process("none", megatron_core, plugin=True, device=device)
    torch.use_deterministic_algorithms(False)  # the contract's checks want the same bits twice; here it costs time
    return world.device, versions


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else results_page.hardware()


def verl_patch() -> ModuleType:
    """verl's ``mtp_patch``, unchanged, loaded by path: verl itself wants Ray and tensordict.

    Under a name of its own it is to the plugin somebody else's patch, and so runs as it is.
    """
    path = stacks.layer("verl", VERL) / "verl" / "models" / "mcore" / "mtp_patch.py"
    specification = importlib.util.spec_from_file_location("upstream_mtp_patch", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def build(device: Any, size: Size, *, mtp: int | None) -> Any:
    """A ``GPTModel`` in train mode, bf16 (fp32 on the CPU), untied, with PyTorch's fused attention; random weights."""
    import torch
    import torch.nn.functional as F
    from megatron.core.models.gpt import gpt_layer_specs as specs
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    from tests.contract.models import call_with

    class Attention(torch.nn.Module):
        """Causal attention, [s, b, heads, d] to [s, b, heads * d]; in place of the local spec's, which is slow."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()

        def forward(self, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            return mixed.permute(2, 0, 1, 3).flatten(2)

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = TransformerConfig(
        num_layers=size.layers, hidden_size=size.hidden, num_attention_heads=size.heads, ffn_hidden_size=size.ffn,
        mtp_num_layers=mtp, mtp_loss_scaling_factor=0.1, attention_dropout=0.0, hidden_dropout=0.0,
        add_bias_linear=False, gated_linear_unit=True, activation_func=F.silu, normalization="RMSNorm",
        use_cpu_initialization=device.type == "cpu", params_dtype=dtype, bf16=dtype is torch.bfloat16,
        pipeline_dtype=dtype, bias_activation_fusion=False, bias_dropout_fusion=False, masked_softmax_fusion=False,
        persist_layer_norm=False, gradient_accumulation_fusion=False,
    )  # fmt: skip
    layer = call_with(specs.get_gpt_layer_local_spec, num_experts=None, moe_grouped_gemm=False, normalization="RMSNorm")
    layer.submodules.self_attention.submodules.core_attention = Attention
    block = specs.get_gpt_mtp_block_spec(config, layer, use_transformer_engine=False) if mtp else None
    model = GPTModel(
        config=config, transformer_layer_spec=layer, vocab_size=size.vocabulary, max_sequence_length=1 << 17,
        share_embeddings_and_output_weights=False, position_embedding_type="rope", mtp_block_spec=block,
    )  # fmt: skip
    return model.to(device=device, dtype=dtype).train()
