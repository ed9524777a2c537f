"""Zhipu's GLM."""

from __future__ import annotations

from typing import Any, Final

from ..family import MEGATRON_BRIDGE, ModelFamily
from .samples import AFTER_TRUNK, COPIES, DENSE, EXPERTS, LATENT, NEXTN, VISION

_GROUPED: Final[dict[str, Any]] = {
    **DENSE,
    **EXPERTS,
    "head_dim": 8,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "use_qk_norm": True,
    NEXTN: 1,
}

GLM4_MOE: Final = ModelFamily(
    "GLM-4.5",
    ("Glm4MoeForCausalLM",),
    (NEXTN,),
    ("glm4_moe",),
    mtp_prefixes=AFTER_TRUNK,
    copies=COPIES,
    since={MEGATRON_BRIDGE: "0.3.1"},
    sample={**_GROUPED, "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe"},
)
GLM4_MOE_LITE: Final = ModelFamily(
    "GLM-4.7-Flash",
    ("Glm4MoeLiteForCausalLM",),
    (NEXTN,),
    ("glm4_moe_lite",),
    mtp_prefixes=AFTER_TRUNK,
    copies=COPIES,
    since={MEGATRON_BRIDGE: "0.5.0"},
    sample={
        **DENSE,
        **EXPERTS,
        **LATENT,
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "model_type": "glm4_moe_lite",
        NEXTN: 1,
    },
)
#: Megatron-Bridge maps the MTP weights from 0.6.0 on, but its provider leaves the layers out unless
#: ``override_transformer_config.mtp_num_layers`` asks for them.
GLM_MOE_DSA: Final = ModelFamily(
    "GLM-5",
    ("GlmMoeDsaForCausalLM",),
    (NEXTN,),
    ("glm_moe_dsa",),
    mtp_prefixes=AFTER_TRUNK,
    copies=COPIES,
    sample={
        **DENSE,
        **EXPERTS,
        **LATENT,
        "architectures": ["GlmMoeDsaForCausalLM"],
        "model_type": "glm_moe_dsa",
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_topk": 4,
        "indexer_rope_interleave": True,
        NEXTN: 1,
    },
)
GLM4V_MOE: Final = ModelFamily(
    "GLM-4.5V",
    ("Glm4vMoeForConditionalGeneration",),
    (NEXTN,),
    ("glm4v_moe",),
    mtp_prefixes=AFTER_TRUNK,
    copies=COPIES,
    sample={
        "architectures": ["Glm4vMoeForConditionalGeneration"],
        "model_type": "glm4v_moe",
        "tie_word_embeddings": False,
        "text_config": {**_GROUPED, "model_type": "glm4v_moe_text"},
        "vision_config": {**VISION, "model_type": "glm4v_moe_vision", "image_size": 16},
    },
)
