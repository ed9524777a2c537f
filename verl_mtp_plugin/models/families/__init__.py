"""The families this package knows, by vendor. Others come from other packages, through ``verl_mtp_models``.

What is written here are facts of published models: names of architectures, of config keys and of tensors. Each sample
is a config of the family's shape at toy size; whether a bridge supports the family is found by asking it with that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ...hookspecs import hookimpl
from ..family import ModelFamily
from .deepseek import DEEPSEEK_V3, DEEPSEEK_V4
from .glm import GLM4_MOE, GLM4_MOE_LITE, GLM4V_MOE, GLM_MOE_DSA
from .lg import EXAONE4_5, EXAONE_MOE
from .more import BAILING_MOE_V2, ERNIE4_5_MOE, HY_V3, MINIMAX_M2, NEMOTRON_H, STEP3P5
from .qwen import QWEN3, QWEN3_5, QWEN3_5_MOE, QWEN3_5_MOE_VL, QWEN3_5_VL, QWEN3_NEXT
from .xiaomi import MIMO, MIMO_V2_FLASH

__all__ = [
    "BAILING_MOE_V2",
    "DEEPSEEK_V3",
    "DEEPSEEK_V4",
    "ERNIE4_5_MOE",
    "EXAONE4_5",
    "EXAONE_MOE",
    "FAMILIES",
    "GLM4V_MOE",
    "GLM4_MOE",
    "GLM4_MOE_LITE",
    "GLM_MOE_DSA",
    "HY_V3",
    "MIMO",
    "MIMO_V2_FLASH",
    "MINIMAX_M2",
    "NEMOTRON_H",
    "QWEN3",
    "QWEN3_5",
    "QWEN3_5_MOE",
    "QWEN3_5_MOE_VL",
    "QWEN3_5_VL",
    "QWEN3_NEXT",
    "STEP3P5",
    "verl_mtp_models",
]

FAMILIES: Final = (
    MIMO,
    MIMO_V2_FLASH,
    DEEPSEEK_V3,
    DEEPSEEK_V4,
    GLM4_MOE,
    GLM4_MOE_LITE,
    GLM_MOE_DSA,
    GLM4V_MOE,
    QWEN3,
    QWEN3_NEXT,
    QWEN3_5,
    QWEN3_5_MOE,
    QWEN3_5_VL,
    QWEN3_5_MOE_VL,
    NEMOTRON_H,
    BAILING_MOE_V2,
    STEP3P5,
    HY_V3,
    EXAONE_MOE,
    EXAONE4_5,
    ERNIE4_5_MOE,
    MINIMAX_M2,
)


@hookimpl
def verl_mtp_models() -> Iterable[ModelFamily]:
    """The built-in families."""
    return FAMILIES
