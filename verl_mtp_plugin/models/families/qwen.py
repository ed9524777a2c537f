"""Qwen."""

from __future__ import annotations

from typing import Any, Final

from ..family import MEGATRON_BRIDGE, ModelFamily
from .samples import DENSE, GATED_DELTA, NEXTN, QWEN_EXPERTS, VISION

_HIDDEN: Final = "mtp_num_hidden_layers"
_MTP: Final = ("mtp.",)


def _with_vision(architecture: str, model_type: str, text: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "tie_word_embeddings": False,
        "text_config": {**text, "model_type": f"{model_type}_text"},
        "vision_config": {**VISION, "model_type": model_type, "num_position_embeddings": 16},
    }


_QWEN3_5: Final[dict[str, Any]] = {**DENSE, **GATED_DELTA, _HIDDEN: 1}
_QWEN3_5_MOE: Final[dict[str, Any]] = {**_QWEN3_5, **QWEN_EXPERTS}

#: Qwen3 as published has no MTP head; this is one that was given it, in the layout of the later ones.
QWEN3: Final = ModelFamily(
    "Qwen3 with an MTP head",
    ("Qwen3ForCausalLM",),
    (NEXTN, _HIDDEN),
    ("qwen3",),
    mtp_prefixes=_MTP,
    since={MEGATRON_BRIDGE: "0.5.0"},
    sample={**DENSE, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8, NEXTN: 1},
)
QWEN3_NEXT: Final = ModelFamily(
    "Qwen3-Next",
    ("Qwen3NextForCausalLM",),
    (NEXTN, _HIDDEN),
    ("qwen3_next",),
    mtp_prefixes=_MTP,
    # 0.3 builds no MTP layers; 0.4 maps their weights by names that the megatron-core it needs has no longer.
    since={MEGATRON_BRIDGE: "0.5.0"},
    sample={
        **DENSE,
        **GATED_DELTA,
        **QWEN_EXPERTS,
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        NEXTN: 1,
    },
)
QWEN3_5: Final = ModelFamily(
    "Qwen3.5 text",
    ("Qwen3_5ForCausalLM",),
    (_HIDDEN, NEXTN),
    ("qwen3_5_text",),
    mtp_prefixes=_MTP,
    since={MEGATRON_BRIDGE: "0.5.0"},
    sample={**_QWEN3_5, "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text"},
)
QWEN3_5_MOE: Final = ModelFamily(
    "Qwen3.5 MoE text",
    ("Qwen3_5MoeForCausalLM",),
    (_HIDDEN, NEXTN),
    ("qwen3_5_moe_text",),
    mtp_prefixes=_MTP,
    since={MEGATRON_BRIDGE: "0.5.0"},
    sample={**_QWEN3_5_MOE, "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text"},
)
QWEN3_5_VL: Final = ModelFamily(
    "Qwen3.5",
    ("Qwen3_5ForConditionalGeneration",),
    (_HIDDEN, NEXTN),
    ("qwen3_5",),
    mtp_prefixes=_MTP,
    since={MEGATRON_BRIDGE: "0.4.0"},
    sample=_with_vision("Qwen3_5ForConditionalGeneration", "qwen3_5", _QWEN3_5),
)
QWEN3_5_MOE_VL: Final = ModelFamily(
    "Qwen3.5 MoE",
    ("Qwen3_5MoeForConditionalGeneration",),
    (_HIDDEN, NEXTN),
    ("qwen3_5_moe",),
    mtp_prefixes=_MTP,
    since={MEGATRON_BRIDGE: "0.4.0"},
    sample=_with_vision("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", _QWEN3_5_MOE),
)
