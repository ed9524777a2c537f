"""LG's EXAONE."""

from __future__ import annotations

from typing import Final

from ..family import MEGATRON_BRIDGE, ModelFamily
from .samples import DENSE, EXPERTS, NEXTN, VISION

EXAONE_MOE: Final = ModelFamily(
    "EXAONE MoE",
    ("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"),
    (NEXTN,),
    ("exaone_moe",),
    mtp_prefixes=("mtp.",),
    since={MEGATRON_BRIDGE: "0.6.0"},
    sample={
        **DENSE,
        **EXPERTS,
        "architectures": ["ExaoneMoeForCausalLM"],
        "model_type": "exaone_moe",
        "head_dim": 8,
        "num_experts": 4,
        "num_shared_experts": 1,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        NEXTN: 1,
    },
)
EXAONE4_5: Final = ModelFamily(
    "EXAONE 4.5",
    ("Exaone4_5_ForConditionalGeneration",),
    (NEXTN,),
    ("exaone4_5",),
    mtp_prefixes=("mtp.",),
    since={MEGATRON_BRIDGE: "0.6.0"},
    sample={
        "architectures": ["Exaone4_5_ForConditionalGeneration"],
        "model_type": "exaone4_5",
        "tie_word_embeddings": False,
        "text_config": {
            **DENSE,
            "model_type": "exaone4",
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            NEXTN: 1,
        },
        "vision_config": {**VISION, "model_type": "exaone4_5_vision", "num_key_value_heads": 2},
    },
)
