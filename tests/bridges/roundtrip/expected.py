"""What Megatron's MTP layer must hold for a checkpoint, worked out from the checkpoint.

A round trip alone is content with any mapping that is undone on the way back: norms exchanged, halves in the wrong
order. So the layer's whole tensors are compared with these. In Megatron ``eh_proj`` takes ``[embedding, hidden]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
#: What the transformer layer inside an MTP layer is called here, whatever megatron-core calls it.
INNER: Final = "layer."


def tensors(config: Mapping[str, Any], hf: Tensors) -> dict[str, Tensor]:
    """By name in Megatron's first MTP layer, its inner layer called ``layer``."""
    kind = config["model_type"]
    if kind == "mimo":
        return _mimo(config, hf, "model.mtp_layers.0")
    if kind == "qwen3_next":
        joined = _joined(hf, "mtp", ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm"))
        return joined | _inner(config, hf, "mtp.layers.0")
    prefix = f"model.layers.{config['num_hidden_layers']}"
    joined = _joined(hf, prefix, ("enorm", "hnorm", "eh_proj", "shared_head.norm"))
    return joined | _inner(config, hf, prefix)


def _mimo(config: Mapping[str, Any], hf: Tensors, prefix: str) -> dict[str, Tensor]:
    made = _joined(hf, prefix, ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm"))
    hidden, embedding = made["eh_proj.weight"].chunk(2, dim=1)  # MiMo's order
    made["eh_proj.weight"] = torch.cat((embedding, hidden), dim=1)
    return made | _inner(config, hf, prefix)


def _joined(hf: Tensors, prefix: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    ours = ("enorm", "hnorm", "eh_proj", "final_layernorm")
    return {f"{our}.weight": hf[f"{prefix}.{name}.weight"] for our, name in zip(ours, names, strict=True)}


def _inner(config: Mapping[str, Any], hf: Tensors, prefix: str) -> dict[str, Tensor]:
    part = {name.removeprefix(f"{prefix}."): tensor for name, tensor in hf.items() if name.startswith(f"{prefix}.")}
    made = _latent(part) if "self_attn.q_a_proj.weight" in part else _grouped_query(config, part)
    made["self_attention.linear_proj.weight"] = part["self_attn.o_proj.weight"]
    made |= _experts(part) if "mlp.gate.weight" in part else _dense(part)
    return {INNER + name: tensor for name, tensor in made.items()}


def _latent(part: Tensors) -> dict[str, Tensor]:
    names = {
        "linear_q_down_proj.weight": "q_a_proj",
        "linear_q_up_proj.layer_norm_weight": "q_a_layernorm",
        "linear_q_up_proj.weight": "q_b_proj",
        "linear_kv_down_proj.weight": "kv_a_proj_with_mqa",
        "linear_kv_up_proj.layer_norm_weight": "kv_a_layernorm",
        "linear_kv_up_proj.weight": "kv_b_proj",
    }
    made = {f"self_attention.{ours}": part[f"self_attn.{name}.weight"] for ours, name in names.items()}
    return made | {"input_layernorm.weight": part["input_layernorm.weight"]}


def _grouped_query(config: Mapping[str, Any], part: Tensors) -> dict[str, Tensor]:
    """One matrix, group by group: the query heads that share a key, their gates if they have any, key and value."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = part["self_attn.k_proj.weight"].shape[0] // groups
    made = {"self_attention.linear_qkv.layer_norm_weight": part["input_layernorm.weight"]}
    for kind in ("weight", "bias"):
        if f"self_attn.q_proj.{kind}" not in part:
            continue
        query, key, value = (part[f"self_attn.{name}_proj.{kind}"] for name in "qkv")
        # Hugging Face has each head's gate after its query.
        parts = query.unflatten(0, (groups, heads // groups, -1, size)).transpose(1, 2).flatten(1, 3)
        rows = [parts, key.unflatten(0, (groups, size)), value.unflatten(0, (groups, size))]
        made[f"self_attention.linear_qkv.{kind}"] = torch.cat(rows, dim=1).flatten(0, 1)
    for ours, name in (("q_layernorm", "q_norm"), ("k_layernorm", "k_norm")):
        if f"self_attn.{name}.weight" in part:
            made[f"self_attention.{ours}.weight"] = part[f"self_attn.{name}.weight"]
    return made


def _gated(part: Tensors, prefix: str) -> Tensor:
    return torch.cat([part[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up")])


def _dense(part: Tensors) -> dict[str, Tensor]:
    return {
        "mlp.linear_fc1.layer_norm_weight": part["post_attention_layernorm.weight"],
        "mlp.linear_fc1.weight": _gated(part, "mlp"),
        "mlp.linear_fc2.weight": part["mlp.down_proj.weight"],
    }


def _experts(part: Tensors) -> dict[str, Tensor]:
    made = {
        "pre_mlp_layernorm.weight": part["post_attention_layernorm.weight"],
        "mlp.router.weight": part["mlp.gate.weight"],
    }
    for expert in range(part["mlp.gate.weight"].shape[0]):
        made[f"mlp.experts.linear_fc1.weight{expert}"] = _gated(part, f"mlp.experts.{expert}")
        made[f"mlp.experts.linear_fc2.weight{expert}"] = part[f"mlp.experts.{expert}.down_proj.weight"]
    shared = "mlp.shared_expert" if "mlp.shared_expert_gate.weight" in part else "mlp.shared_experts"
    made["mlp.shared_experts.linear_fc1.weight"] = _gated(part, shared)
    made["mlp.shared_experts.linear_fc2.weight"] = part[f"{shared}.down_proj.weight"]
    for ours, name in (
        ("mlp.router.expert_bias", "mlp.gate.e_score_correction_bias"),
        ("mlp.shared_experts.gate_weight", "mlp.shared_expert_gate.weight"),
    ):
        if name in part:
            made[ours] = part[name]
    return made
