"""Xiaomi's MiMo."""

from __future__ import annotations

from typing import Final

from ..family import MBRIDGE, MEGATRON_BRIDGE, ModelFamily
from .samples import DENSE, NEXTN

MIMO: Final = ModelFamily(
    "MiMo",
    ("MiMoForCausalLM",),
    (NEXTN,),
    ("mimo",),
    mtp_prefixes=("model.mtp_layers.",),
    since={MBRIDGE: "0.15.1", MEGATRON_BRIDGE: "0.4.0"},
    sample={
        **DENSE,
        "architectures": ["MiMoForCausalLM"],
        "model_type": "mimo",
        # Megatron-Bridge takes the architecture from transformers or from this entry, which the real MiMo has.
        "auto_map": {
            "AutoConfig": "configuration_mimo.MiMoConfig",
            "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM",
        },
        "attention_bias": True,
        NEXTN: 1,
    },
)
#: The published config holds no number of MTP layers, so verl takes the model to have none; Megatron-Bridge counts them
#: by the checkpoint's tensors. With the key added to config.json both agree.
MIMO_V2_FLASH: Final = ModelFamily(
    "MiMo-V2-Flash",
    ("MiMoV2FlashForCausalLM",),
    (NEXTN,),
    ("mimo_v2_flash",),
    mtp_prefixes=("model.mtp.layers.",),
    since={MEGATRON_BRIDGE: "0.5.0"},
    sample={
        **DENSE,
        "architectures": ["MiMoV2FlashForCausalLM"],
        "model_type": "mimo_v2_flash",
        "auto_map": {
            "AutoConfig": "configuration_mimo_v2_flash.MiMoV2FlashConfig",
            "AutoModelForCausalLM": "modeling_mimo_v2_flash.MiMoV2FlashForCausalLM",
        },
        "head_dim": 12,
        "v_head_dim": 8,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 12,
        "swa_v_head_dim": 8,
        "swa_rope_theta": 5000.0,
        "partial_rotary_factor": 0.5,
        "hybrid_layer_pattern": [0, 1],
        "sliding_window": 8,
        "sliding_window_size": 8,
        "attention_value_scale": 0.7,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "layernorm_epsilon": 1e-5,
        "moe_layer_freq": [0, 1],
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        NEXTN: 1,
    },
    sample_tensors=("model.mtp.layers.0.enorm.weight",),
)
