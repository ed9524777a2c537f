"""One family each: NVIDIA, inclusionAI, StepFun, Tencent, Baidu, MiniMax."""

from __future__ import annotations

from typing import Final

from ..family import MEGATRON_BRIDGE, ModelFamily
from .samples import AFTER_TRUNK, DENSE, EXPERTS, NEXTN

#: A Mamba hybrid. Its MTP layer is a pattern of layers of its own, as its trunk is.
NEMOTRON_H: Final = ModelFamily(
    "Nemotron-H",
    ("NemotronHForCausalLM",),
    (NEXTN,),
    ("nemotron_h",),
    mtp_prefixes=("mtp.",),
    since={MEGATRON_BRIDGE: "0.4.0"},
    sample={
        **DENSE,
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "num_hidden_layers": 4,
        "hybrid_override_pattern": "ME*M",
        "mtp_hybrid_override_pattern": "*E",
        "head_dim": 8,
        "layer_norm_epsilon": 1e-5,
        "mlp_hidden_act": "relu2",
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 16,
        "n_groups": 2,
        "conv_kernel": 4,
        "chunk_size": 16,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        NEXTN: 1,
    },
)
BAILING_MOE_V2: Final = ModelFamily(
    "Ling 2.0",
    ("BailingMoeV2ForCausalLM",),
    (NEXTN,),
    ("bailing_moe_v2",),
    mtp_prefixes=AFTER_TRUNK,
    since={MEGATRON_BRIDGE: "0.6.0"},  # 0.5 maps the MTP weights by names that megatron-core has no longer
    sample={
        **DENSE,
        **EXPERTS,
        "architectures": ["BailingMoeV2ForCausalLM"],
        "model_type": "bailing_moe_v2",
        "head_dim": 8,
        "num_experts": 4,
        "num_shared_experts": 1,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        NEXTN: 1,
    },
)
STEP3P5: Final = ModelFamily(
    "Step-3.5",
    ("Step3p5ForCausalLM",),
    (NEXTN,),
    ("step3p5",),
    mtp_prefixes=AFTER_TRUNK,
    copies=("transformer.shared_head.output.weight",),
    since={MEGATRON_BRIDGE: "0.5.0"},
    sample={
        **DENSE,
        "architectures": ["Step3p5ForCausalLM"],
        "model_type": "step3p5",
        "num_attention_groups": 2,
        "head_dim": 8,
        "use_qk_norm": True,
        "use_head_wise_attn_gate": True,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],  # the last is the MTP layer's
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "num_attention_heads": 4,
            "num_attention_groups": 2,
            "head_dim": 8,
        },
        "sliding_window": 8,
        "moe_layers_enum": "1",
        "moe_intermediate_size": 16,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_router_activation": "sigmoid",
        "moe_router_scaling_factor": 1.0,
        "use_moe_router_bias": True,
        "share_expert_dim": 16,
        NEXTN: 1,
    },
)
HY_V3: Final = ModelFamily(
    "HunYuan 3",
    ("HYV3ForCausalLM",),
    (NEXTN,),
    ("hy_v3",),
    mtp_prefixes=AFTER_TRUNK,
    since={MEGATRON_BRIDGE: "0.6.0"},
    sample={
        **DENSE,
        "architectures": ["HYV3ForCausalLM"],
        "model_type": "hy_v3",
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "router_scaling_factor": 1.0,
        NEXTN: 1,
    },
)
ERNIE4_5_MOE: Final = ModelFamily(
    "ERNIE 4.5",
    ("Ernie4_5_MoeForCausalLM",),
    (NEXTN,),
    ("ernie4_5_moe",),
    mtp_prefixes=("model.mtp_",),
    sample={
        **DENSE,
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "model_type": "ernie4_5_moe",
        "moe_intermediate_size": 16,
        "moe_k": 2,
        "moe_num_experts": 4,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 1,
        "moe_layer_interval": 1,
        NEXTN: 1,
    },
)
#: Its config has names of its own for MTP.
MINIMAX_M2: Final = ModelFamily(
    "MiniMax-M2",
    ("MiniMaxM2ForCausalLM",),
    ("num_mtp_modules",),
    ("minimax_m2",),
    sample={
        **DENSE,
        "architectures": ["MiniMaxM2ForCausalLM"],
        "model_type": "minimax_m2",
        "head_dim": 8,
        "rotary_dim": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "scoring_func": "sigmoid",
        "use_mtp": True,
        "mtp_transformer_layers": 1,
        "num_mtp_modules": 1,
    },
)
