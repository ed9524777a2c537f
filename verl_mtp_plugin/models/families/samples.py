"""What the sample configs share: small enough to build in a moment, uneven enough to notice exchanged dimensions."""

from __future__ import annotations

from typing import Any, Final

#: The key that most families have for the number of MTP layers.
NEXTN: Final = "num_nextn_predict_layers"
#: Where the MTP layers of DeepSeek and its kin lie in a checkpoint: after the trunk's layers, counted on.
AFTER_TRUNK: Final = ("model.layers.{layers}.",)
#: What that layout keeps twice in a checkpoint.
COPIES: Final = ("embed_tokens.weight", "shared_head.head.weight")

#: A dense model with grouped-query attention.
DENSE: Final[dict[str, Any]] = {
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
#: Experts in DeepSeek's words, one dense layer before them.
EXPERTS: Final[dict[str, Any]] = {
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
#: Latent attention, which has as many key-value heads as heads.
LATENT: Final[dict[str, Any]] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
#: Qwen's experts.
QWEN_EXPERTS: Final[dict[str, Any]] = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "router_aux_loss_coef": 0.001,
}
#: Three layers of linear attention, then one of full attention.
GATED_DELTA: Final[dict[str, Any]] = {
    "num_hidden_layers": 4,
    "full_attention_interval": 4,
    "head_dim": 8,
    "partial_rotary_factor": 0.5,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
#: A vision tower in Qwen's words; text and images meet in ``out_hidden_size``.
VISION: Final[dict[str, Any]] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "in_channels": 3,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
