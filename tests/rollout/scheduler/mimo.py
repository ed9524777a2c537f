"""SGLang's own MiMo drafter, of toy size, as each tensor-parallel rank has it; and what a trainer would send for it.

The shards, the fused matrices and the loader are SGLang's. In the process with SGLang (0.5.8 to 0.5.12).
"""

from __future__ import annotations

import importlib
import os
import socket
from typing import Any

import torch

HIDDEN, INNER, VOCABULARY, HEADS = 32, 48, 64, 4
PREFIX = "model.mtp_layers.0."


class _Defaults:
    """SGLang's global server arguments: nothing asked for."""

    device = "cpu"
    #: All that the drafter's layers look at, 0.5.8 to 0.5.12.
    enable_dp_lm_head = enable_fp32_lm_head = enable_mis = rl_on_policy_target = None


def config(kv_heads: int) -> Any:
    """The Hugging Face config of the model."""
    from transformers import Qwen2Config

    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "vocab_size": VOCABULARY, "num_hidden_layers": 2}
    made = Qwen2Config(**sizes, num_attention_heads=HEADS, num_key_value_heads=kv_heads, max_position_embeddings=64)
    made.rope_theta, made.rope_scaling = 10000.0, None
    made.architectures, made.num_nextn_predict_layers = ["MiMoForCausalLM"], 1
    return made


def drafters(ranks: int, kv_heads: int, dtype: torch.dtype = torch.bfloat16) -> list[Any]:
    """The drafter of every rank."""
    groups = _groups()
    attention = importlib.import_module("sglang.srt.layers.dp_attention")
    model = importlib.import_module("sglang.srt.models.mimo_mtp").MiMoMTP
    found = []
    for rank in range(ranks):
        for group in groups:
            group.world_size, group.rank_in_group = ranks, rank
        for name, value in {"TP_SIZE": ranks, "TP_RANK": rank, "DP_SIZE": 1, "DP_RANK": 0}.items():
            if hasattr(attention, f"_ATTN_{name}"):
                setattr(attention, f"_ATTN_{name}", value)
        made = model(config(kv_heads))
        for parameter in made.parameters():
            parameter.data.normal_()  # as if loaded from somewhere else
        found.append(made.to(dtype))
    return found


def _groups() -> list[Any]:
    state = importlib.import_module("sglang.srt.distributed.parallel_state")
    if not torch.distributed.is_initialized():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        address = f"tcp://127.0.0.1:{port}"
        state.init_distributed_environment(1, 0, address, 0, backend="gloo")
        state.initialize_model_parallel()
        arguments = importlib.import_module("sglang.srt.server_args")
        arguments.set_global_server_args_for_scheduler(_Defaults())
    names = ("_TP", "_MOE_TP", "_MOE_EP", "_ATTN_TP")
    return list({id(g): g for n in names if (g := getattr(state, n, None)) is not None}.values())


def checkpoint(kv_heads: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """The whole model's tensors, named as in MiMo's checkpoints: two layers of the trunk and one of MTP."""
    generator = torch.Generator().manual_seed(seed)
    head = HIDDEN // HEADS
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "self_attn.k_proj.weight": (kv_heads * head, HIDDEN),
        "self_attn.v_proj.weight": (kv_heads * head, HIDDEN),
        "self_attn.q_proj.bias": (HIDDEN,),
        "self_attn.k_proj.bias": (kv_heads * head,),
        "self_attn.v_proj.bias": (kv_heads * head,),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "mlp.gate_proj.weight": (INNER, HIDDEN),
        "mlp.up_proj.weight": (INNER, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INNER),
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
    }
    extra: dict[str, tuple[int, ...]] = {"input_proj.weight": (HIDDEN, 2 * HIDDEN)}
    extra |= {f"{name}.weight": (HIDDEN,) for name in ("token_layernorm", "hidden_layernorm", "final_layernorm")}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for number in range(2):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes |= {f"{PREFIX}{name}": shape for name, shape in (layer | extra).items()}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
