"""Which stacks are asked for the names of all families' tensors, what each builds, and what is mended. Standard library
only."""

from __future__ import annotations

import os
from typing import Final

from ..roundtrip.cells import MBRIDGE, MEGATRON_BRIDGE, Stack

#: Families of which a stack builds a toy model on the CPU. Nemotron-H wants mamba-ssm, DeepSeek-V4 a megatron-core that
#: is no release yet; the rest has no bridge class there, or one for another transformers.
_MBRIDGE: Final = ("MiMo", "DeepSeek-V3", "GLM-4.5", "Qwen3 with an MTP head")
_EVERY_QWEN: Final = (
    "Qwen3 with an MTP head",
    "Qwen3-Next",
    "Qwen3.5 text",
    "Qwen3.5 MoE text",
    "Qwen3.5",
    "Qwen3.5 MoE",
)
BUILT: Final[dict[Stack, tuple[str, ...]]] = {
    Stack(MBRIDGE, "0.15.1", "0.16.1"): _MBRIDGE,
    Stack(MBRIDGE, "0.15.1", "0.19.2"): _MBRIDGE,
    Stack(MEGATRON_BRIDGE, "0.3.1", "0.16.1"): ("DeepSeek-V3", "GLM-4.5", "Qwen3 with an MTP head", "Qwen3-Next"),
    Stack(MEGATRON_BRIDGE, "0.4.2", "0.17.1"): (
        *("MiMo", "DeepSeek-V3", "GLM-4.5", "GLM-4.5V", "Qwen3 with an MTP head", "Qwen3-Next"),
    ),
    Stack(MEGATRON_BRIDGE, "0.5.1", "0.18.2"): (
        *("MiMo", "MiMo-V2-Flash", "DeepSeek-V3", "GLM-4.5", "GLM-4.7-Flash", "GLM-5", "GLM-4.5V", *_EVERY_QWEN),
        *("Ling 2.0", "ERNIE 4.5"),
    ),
    Stack(MEGATRON_BRIDGE, "0.6.2", "0.19.2"): (
        *("MiMo", "MiMo-V2-Flash", "DeepSeek-V3", "GLM-4.5", "GLM-4.7-Flash", "GLM-4.5V", *_EVERY_QWEN),
        *("Ling 2.0", "Step-3.5", "HunYuan 3", "EXAONE MoE", "EXAONE 4.5", "ERNIE 4.5"),
    ),
}
#: What the tests run every time, for the sake of their duration; ``VERL_MTP_ALL_STACKS=1`` runs all. mbridge's names do
#: not change with megatron-core, and Megatron-Bridge 0.4 saves by the same code as 0.3.
LEFT_OUT: Final = ("mbridge-0.15.1_megatron-core-0.19.2", "megatron-bridge-0.4.2_megatron-core-0.17.1")
STACKS: Final = tuple(stack for stack in BUILT if os.environ.get("VERL_MTP_ALL_STACKS") or str(stack) not in LEFT_OUT)

#: Built without MTP although the config promises it, which the plugin refuses; what is saved with MTP off counts.
REFUSED: Final[dict[Stack, tuple[str, ...]]] = {
    Stack(MBRIDGE, "0.15.1", "0.16.1"): ("GLM-4.5", "Qwen3 with an MTP head"),
    Stack(MBRIDGE, "0.15.1", "0.19.2"): ("GLM-4.5", "Qwen3 with an MTP head"),
    Stack(MEGATRON_BRIDGE, "0.3.1", "0.16.1"): ("DeepSeek-V3", "Qwen3 with an MTP head"),
    Stack(MEGATRON_BRIDGE, "0.4.2", "0.17.1"): ("GLM-4.5V", "Qwen3 with an MTP head"),
    Stack(MEGATRON_BRIDGE, "0.5.1", "0.18.2"): ("GLM-5", "GLM-4.5V", "Ling 2.0", "ERNIE 4.5"),
    Stack(MEGATRON_BRIDGE, "0.6.2", "0.19.2"): ("GLM-4.5V", "ERNIE 4.5"),
}

#: With MTP, a checkpoint with copies that the bridge does not export: the files that hold one are not saved.
COPIES: Final = "enabled"
#: With MTP, a checkpoint without the copies that the bridge exports: KeyError.
NO_COPIES: Final = "enabled, no copies"
#: Without MTP, the files that hold MTP tensors, and whatever else is in them, are not saved, in silence or with an
#: error; or what the bridge exports of an MTP layer all the same is a KeyError.
OFF: Final = "disabled"
OFF_NO_COPIES: Final = "disabled, no copies"

_MENDED_MBRIDGE: Final = {
    "MiMo": (OFF,),
    "DeepSeek-V3": (COPIES, OFF, OFF_NO_COPIES),
    "GLM-4.5": (OFF, OFF_NO_COPIES),
    "Qwen3 with an MTP head": (OFF,),
}
#: Of families whose folders are complete with the plugin alone, in which states. Everything else is complete without.
MENDED: Final[dict[Stack, dict[str, tuple[str, ...]]]] = {
    Stack(MBRIDGE, "0.15.1", "0.16.1"): _MENDED_MBRIDGE,
    Stack(MBRIDGE, "0.15.1", "0.19.2"): _MENDED_MBRIDGE,
    Stack(MEGATRON_BRIDGE, "0.3.1", "0.16.1"): {
        "DeepSeek-V3": (OFF, OFF_NO_COPIES),
        "GLM-4.5": (COPIES, OFF, OFF_NO_COPIES),
        "Qwen3 with an MTP head": (OFF,),
        "Qwen3-Next": (OFF,),
    },
    Stack(MEGATRON_BRIDGE, "0.4.2", "0.17.1"): {
        "MiMo": (OFF,),
        "DeepSeek-V3": (COPIES, OFF, OFF_NO_COPIES),
        "GLM-4.5": (COPIES, OFF, OFF_NO_COPIES),
        "GLM-4.5V": (OFF, OFF_NO_COPIES),
        "Qwen3 with an MTP head": (OFF,),
        "Qwen3-Next": (OFF,),
    },
    Stack(MEGATRON_BRIDGE, "0.5.1", "0.18.2"): {
        "MiMo": (OFF,),
        "MiMo-V2-Flash": (OFF,),
        "DeepSeek-V3": (COPIES, OFF, OFF_NO_COPIES),
        "GLM-4.5": (COPIES, OFF, OFF_NO_COPIES),
        "GLM-4.7-Flash": (COPIES, OFF, OFF_NO_COPIES),
        "GLM-5": (OFF, OFF_NO_COPIES),
        "GLM-4.5V": (OFF, OFF_NO_COPIES),
        **dict.fromkeys((*_EVERY_QWEN, "Ling 2.0", "ERNIE 4.5"), (OFF,)),
    },
    Stack(MEGATRON_BRIDGE, "0.6.2", "0.19.2"): {
        "MiMo": (OFF,),
        "MiMo-V2-Flash": (OFF,),
        "DeepSeek-V3": (COPIES,),
        "GLM-4.5": (COPIES,),
        "GLM-4.7-Flash": (NO_COPIES, OFF, OFF_NO_COPIES),
        "Step-3.5": (OFF,),
        "ERNIE 4.5": (OFF,),
    },
}
