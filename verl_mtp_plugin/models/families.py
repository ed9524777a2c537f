"""The families this package knows. Others come from other packages, through ``verl_mtp_models``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ..hookspecs import hookimpl
from .family import MBRIDGE, MEGATRON_BRIDGE, ModelFamily

#: Keys that all samples share, small enough to build in a moment and uneven enough to notice exchanged dimensions.
_TOY: Final[dict[str, Any]] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_EXPERTS: Final[dict[str, Any]] = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
}
_NEXTN: Final = ("num_nextn_predict_layers",)
#: What DeepSeek's layout keeps twice in a checkpoint.
_COPIES: Final = ("embed_tokens.weight", "shared_head.head.weight")

MIMO: Final = ModelFamily(
    "MiMo",
    ("MiMoForCausalLM",),
    _NEXTN,
    ("mimo",),
    mtp_prefixes=("model.mtp_layers.",),
    since={MBRIDGE: "0.15.1", MEGATRON_BRIDGE: "0.4.0"},
    sample={
        **_TOY,
        "architectures": ["MiMoForCausalLM"],
        "model_type": "mimo",
        # Megatron-Bridge takes the architecture from transformers or from this entry, which the real MiMo has.
        "auto_map": {
            "AutoConfig": "configuration_mimo.MiMoConfig",
            "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM",
        },
        "attention_bias": True,
        "num_nextn_predict_layers": 1,
    },
)
DEEPSEEK_V3: Final = ModelFamily(
    "DeepSeek-V3",
    ("DeepseekV3ForCausalLM",),
    _NEXTN,
    ("deepseek_v3",),
    mtp_prefixes=("model.layers.{layers}.",),
    copies=_COPIES,
    since={MEGATRON_BRIDGE: "0.4.0"},
    sample={
        **_TOY,
        **_EXPERTS,
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "aux_loss_alpha": 0.001,
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 1,
    },
)
GLM4_MOE: Final = ModelFamily(
    "GLM-4.5",
    ("Glm4MoeForCausalLM",),
    _NEXTN,
    ("glm4_moe",),
    mtp_prefixes=("model.layers.{layers}.",),
    copies=_COPIES,
    since={MEGATRON_BRIDGE: "0.3.1"},
    sample={
        **_TOY,
        **_EXPERTS,
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "head_dim": 8,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "use_qk_norm": True,
        "num_nextn_predict_layers": 1,
    },
)
QWEN3_NEXT: Final = ModelFamily(
    "Qwen3-Next",
    ("Qwen3NextForCausalLM",),
    ("num_nextn_predict_layers", "mtp_num_hidden_layers"),
    ("qwen3_next",),
    mtp_prefixes=("mtp.",),
    since={MEGATRON_BRIDGE: "0.3.1"},
    sample={
        **_TOY,
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "num_hidden_layers": 4,
        "full_attention_interval": 4,
        "head_dim": 8,
        "partial_rotary_factor": 0.5,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "router_aux_loss_coef": 0.001,
        "num_nextn_predict_layers": 1,
    },
)

FAMILIES: Final = (MIMO, DEEPSEEK_V3, GLM4_MOE, QWEN3_NEXT)


@hookimpl
def verl_mtp_models() -> Iterable[ModelFamily]:
    """The built-in families."""
    return FAMILIES
