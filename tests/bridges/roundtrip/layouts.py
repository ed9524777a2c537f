"""What the families' checkpoints hold, as the published ones lay it out: names and shapes, written down by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

#: Shapes by Hugging Face name, ``[out, in]`` for a matrix.
Shapes = dict[str, tuple[int, ...]]
Config = Mapping[str, Any]

#: The routing correction of an expert is the one tensor that checkpoints keep in fp32.
FP32_SUFFIX: Final = "e_score_correction_bias"
#: What the published DeepSeek and GLM checkpoints keep a second time, in the layer that is the MTP head.
COPIES: Final = {"embed_tokens.weight": "model.embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}


def qkv(prefix: str, config: Config, *, query_parts: int = 1, bias: bool = False, norms: bool = False) -> Shapes:
    """Grouped-query attention; ``query_parts`` is 2 where the query projection holds the output gate as well."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    query, key = heads * size, config["num_key_value_heads"] * size
    rows = {"q_proj": query * query_parts, "k_proj": key, "v_proj": key}
    shapes: Shapes = {f"{prefix}.{name}.weight": (out, hidden) for name, out in rows.items()}
    if bias:
        shapes |= {f"{prefix}.{name}.bias": (out,) for name, out in rows.items()}
    if norms:
        shapes |= {f"{prefix}.{name}.weight": (size,) for name in ("q_norm", "k_norm")}
    return shapes | {f"{prefix}.o_proj.weight": (hidden, query)}


def gated_qkv(prefix: str, config: Config) -> Shapes:
    """Qwen3-Next's grouped-query attention."""
    return qkv(prefix, config, query_parts=2, norms=True)


def latent_attention(prefix: str, config: Config) -> Shapes:
    """DeepSeek's multi-head latent attention with a compressed query."""
    hidden, heads, q, kv = (config[k] for k in ("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank"))
    nope, rope, value = (config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    shapes: Shapes = {
        "q_a_proj": (q, hidden),
        "q_a_layernorm": (q,),
        "q_b_proj": (heads * (nope + rope), q),
        "kv_a_proj_with_mqa": (kv + rope, hidden),
        "kv_a_layernorm": (kv,),
        "kv_b_proj": (heads * (nope + value), kv),
        "o_proj": (hidden, heads * value),
    }
    return {f"{prefix}.{name}.weight": shape for name, shape in shapes.items()}


def delta_net(prefix: str, config: Config) -> Shapes:
    """Qwen3-Next's gated delta net."""
    hidden, kernel = config["hidden_size"], config["linear_conv_kernel_dim"]
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key, value = keys * config["linear_key_head_dim"], values * config["linear_value_head_dim"]
    return {
        f"{prefix}.in_proj_qkvz.weight": (2 * key + 2 * value, hidden),
        f"{prefix}.in_proj_ba.weight": (2 * values, hidden),
        f"{prefix}.conv1d.weight": (2 * key + value, 1, kernel),
        f"{prefix}.dt_bias": (values,),
        f"{prefix}.A_log": (values,),
        f"{prefix}.norm.weight": (config["linear_value_head_dim"],),
        f"{prefix}.out_proj.weight": (hidden, value),
    }


def mlp(prefix: str, config: Config, inter: int) -> Shapes:
    """Gate, up and down."""
    hidden = config["hidden_size"]
    shapes: Shapes = {f"{prefix}.{name}_proj.weight": (inter, hidden) for name in ("gate", "up")}
    return shapes | {f"{prefix}.down_proj.weight": (hidden, inter)}


def moe(prefix: str, config: Config) -> Shapes:
    """Experts one by one, as checkpoints have them; in DeepSeek's and GLM's manner or in Qwen's."""
    hidden, inter = config["hidden_size"], config["moe_intermediate_size"]
    qwen = "num_experts" in config
    number = config["num_experts"] if qwen else config["n_routed_experts"]
    shapes: Shapes = {f"{prefix}.gate.weight": (number, hidden)}
    for expert in range(number):
        shapes |= mlp(f"{prefix}.experts.{expert}", config, inter)
    if qwen:
        shapes |= mlp(f"{prefix}.shared_expert", config, config["shared_expert_intermediate_size"])
        return shapes | {f"{prefix}.shared_expert_gate.weight": (1, hidden)}
    shapes |= mlp(f"{prefix}.shared_experts", config, inter * config["n_shared_experts"])
    return shapes | {f"{prefix}.gate.{FP32_SUFFIX}": (number,)}


def norms(prefix: str, config: Config, *names: str) -> Shapes:
    return {f"{prefix}.{name}.weight": (config["hidden_size"],) for name in names}


def layer(prefix: str, config: Config, index: int | None) -> Shapes:
    """One transformer layer; ``index`` is None for the one inside an MTP layer."""
    kind, attention = config["model_type"], f"{prefix}.self_attn"
    shapes = norms(prefix, config, "input_layernorm", "post_attention_layernorm")
    if kind == "mimo":
        shapes |= qkv(attention, config, bias=True)
        return shapes | mlp(f"{prefix}.mlp", config, config["intermediate_size"])
    if kind == "qwen3_next":
        linear = index is not None and (index + 1) % config["full_attention_interval"]
        shapes |= delta_net(f"{prefix}.linear_attn", config) if linear else gated_qkv(attention, config)
        return shapes | moe(f"{prefix}.mlp", config)
    if kind == "deepseek_v3":
        shapes |= latent_attention(attention, config)
    else:
        shapes |= qkv(attention, config, bias=config["attention_bias"], norms=config["use_qk_norm"])
    if index is not None and index < config["first_k_dense_replace"]:
        return shapes | mlp(f"{prefix}.mlp", config, config["intermediate_size"])
    return shapes | moe(f"{prefix}.mlp", config)


def trunk(config: Config) -> Shapes:
    """Everything but the MTP head."""
    vocabulary = (config["vocab_size"], config["hidden_size"])
    shapes: Shapes = {"model.embed_tokens.weight": vocabulary} | norms("model", config, "norm")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = vocabulary
    for index in range(config["num_hidden_layers"]):
        shapes |= layer(f"model.layers.{index}", config, index)
    return shapes


def _mimo_mtp(config: Config) -> Shapes:
    prefix = "model.mtp_layers.0"
    shapes = norms(prefix, config, "token_layernorm", "hidden_layernorm", "final_layernorm")
    return shapes | _joined(f"{prefix}.input_proj", config) | layer(prefix, config, None)


def _deepseek_mtp(config: Config) -> Shapes:
    prefix = f"model.layers.{config['num_hidden_layers']}"
    shapes = norms(prefix, config, "enorm", "hnorm", "shared_head.norm")
    return shapes | _joined(f"{prefix}.eh_proj", config) | layer(prefix, config, None)


def _qwen3_next_mtp(config: Config) -> Shapes:
    shapes = norms("mtp", config, "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    return shapes | _joined("mtp.fc", config) | layer("mtp.layers.0", config, None)


def _joined(name: str, config: Config) -> Shapes:
    """What takes the embedding and the hidden state, side by side."""
    return {f"{name}.weight": (config["hidden_size"], 2 * config["hidden_size"])}


_MTP: Final[dict[str, Callable[[Config], Shapes]]] = {
    "mimo": _mimo_mtp,
    "deepseek_v3": _deepseek_mtp,
    "glm4_moe": _deepseek_mtp,
    "qwen3_next": _qwen3_next_mtp,
}


def mtp(config: Config) -> Shapes:
    """The MTP head, of one layer."""
    return _MTP[config["model_type"]](config)


def copies(config: Config) -> dict[str, str]:
    """Copies of the trunk's tensors, by name, that a published checkpoint of this family holds besides."""
    if config["model_type"] not in ("deepseek_v3", "glm4_moe"):
        return {}
    prefix = f"model.layers.{config['num_hidden_layers']}"
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if config["tie_word_embeddings"] else {}
    return {f"{prefix}.{name}": tied.get(source, source) for name, source in COPIES.items()}
