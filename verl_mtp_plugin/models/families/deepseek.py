"""DeepSeek."""

from __future__ import annotations

from typing import Final

from ..family import MBRIDGE, MEGATRON_BRIDGE, ModelFamily
from .samples import AFTER_TRUNK, COPIES, DENSE, EXPERTS, LATENT, NEXTN

DEEPSEEK_V3: Final = ModelFamily(
    "DeepSeek-V3",
    ("DeepseekV3ForCausalLM",),
    (NEXTN,),
    ("deepseek_v3",),
    mtp_prefixes=AFTER_TRUNK,
    copies=COPIES,
    since={MBRIDGE: "0.15.1", MEGATRON_BRIDGE: "0.4.0"},
    sample={
        **DENSE,
        **EXPERTS,
        **LATENT,
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "aux_loss_alpha": 0.001,
        "moe_layer_freq": 1,
        NEXTN: 1,
    },
)
#: Megatron-Bridge maps the MTP weights from 0.5.0 on, for MTP layers with two projections (``e_proj``, ``h_proj``);
#: those of megatron-core's releases up to 0.19.2 have one.
DEEPSEEK_V4: Final = ModelFamily(
    "DeepSeek-V4",
    ("DeepseekV4ForCausalLM",),
    (NEXTN,),
    ("deepseek_v4",),
    mtp_prefixes=("mtp.",),
    sample={
        **DENSE,
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "num_key_value_heads": 1,
        "head_dim": 16,
        "qk_rope_head_dim": 4,
        "partial_rotary_factor": 0.25,
        "q_lora_rank": 24,
        "o_groups": 2,
        "o_lora_rank": 8,
        "sliding_window": 8,
        "compress_ratios": [0, 4, 0],  # of both layers and the MTP layer
        "compress_rope_theta": 40000.0,
        "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_topk": 4,
        "hc_mult": 2,
        "hc_sinkhorn_iters": 2,
        "hc_eps": 1e-6,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "num_hash_layers": 1,
        "scoring_func": "sqrtsoftplus",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "swiglu_limit": 10.0,
        NEXTN: 1,
    },
)
