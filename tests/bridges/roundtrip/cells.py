"""What is taken through which bridge: releases, families, variants. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MBRIDGE, MEGATRON_BRIDGE = "mbridge", "megatron-bridge"
MIMO, DEEPSEEK, GLM, QWEN = "MiMo", "DeepSeek-V3", "GLM-4.5", "Qwen3-Next"
#: Tensors of each family's MTP head, of one layer and with four experts. By hand: MiMo 12 of a dense layer and 4 around
#: it; the others 2 norms, 7, 9 or 6 of attention, 17 of experts, router and shared expert, and the same 4.
MTP_TENSORS: Final = {MIMO: 12 + 4, DEEPSEEK: 2 + 7 + 17 + 4, GLM: 2 + 9 + 17 + 4, QWEN: 2 + 6 + 17 + 4}
PROCESSES: Final = 2


@dataclass(frozen=True, slots=True, order=True)
class Stack:
    """A bridge's release on a release of megatron-core."""

    bridge: str
    version: str
    megatron_core: str

    def __str__(self) -> str:
        return f"{self.bridge}-{self.version}_megatron-core-{self.megatron_core}"


@dataclass(frozen=True, slots=True)
class Case:
    """A family in some variant, sharded or not: ``MiMo+tied@2``.

    Options of the checkpoint: ``tied`` (no lm_head), ``copies`` (with what DeepSeek and GLM keep twice), ``vocab97``
    (which two cannot share), ``layers61`` (a trunk of 61 layers), ``yarn`` (a scaled rope). Of the bridge: ``bare``
    (without the plugin's mends), ``padded`` and ``share`` (a setting of Megatron-Bridge's provider changed). Faults put
    in on purpose: see :mod:`.faults`.
    """

    family: str
    options: frozenset[str]
    tensor_parallel: int

    @classmethod
    def parse(cls, text: str) -> Case:
        name, size = text.split("@")
        family, *options = name.split("+")
        return cls(family, frozenset(options), int(size))

    def __str__(self) -> str:
        return "+".join((self.family, *sorted(self.options))) + f"@{self.tensor_parallel}"


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}@{size}" for size in (1, PROCESSES) for name in names)


#: What must come back bit for bit.
_MBRIDGE: Final = _both("MiMo", "DeepSeek-V3", "DeepSeek-V3+tied", "MiMo+tied")
_MEGATRON_BRIDGE: Final = _both("MiMo", "DeepSeek-V3", "GLM-4.5", "Qwen3-Next", "MiMo+tied", "Qwen3-Next+tied")
ROUND_TRIPS: Final[dict[Stack, tuple[str, ...]]] = {
    Stack(MBRIDGE, "0.15.1", "0.16.1"): ("DeepSeek-V3+copies+layers61+yarn@1", *_MBRIDGE),
    Stack(MBRIDGE, "0.15.1", "0.17.1"): ("MiMo@1", "MiMo@2"),
    Stack(MBRIDGE, "0.15.1", "0.18.2"): ("MiMo@1", "MiMo@2"),
    Stack(MBRIDGE, "0.15.1", "0.19.2"): ("MiMo+vocab97@1", *_MBRIDGE),
    Stack(MEGATRON_BRIDGE, "0.3.1", "0.16.1"): _both("GLM-4.5", "Qwen3-Next", "Qwen3-Next+tied"),
    Stack(MEGATRON_BRIDGE, "0.4.2", "0.17.1"): _MEGATRON_BRIDGE,
    Stack(MEGATRON_BRIDGE, "0.5.1", "0.18.2"): _MEGATRON_BRIDGE,
    Stack(MEGATRON_BRIDGE, "0.6.2", "0.19.2"): (
        *_both("DeepSeek-V3+copies", "GLM-4.5+copies", "DeepSeek-V3+share+tied", "GLM-4.5+share+tied"),
        "MiMo+vocab97@1",
        *_MEGATRON_BRIDGE,
    ),
}
#: What cannot be converted, or not without the plugin, and how that shows.
FAILURES: Final[dict[Stack, dict[str, str]]] = {
    Stack(MBRIDGE, "0.15.1", "0.16.1"): {
        "MiMo+bare@1": "AttributeError: 'MiMoConfig' object has no attribute 'rope_theta'",
        "DeepSeek-V3+bare@1": "AttributeError: 'DeepseekV3Config' object has no attribute 'rope_theta'",
        "Qwen3-Next@1": "ValueError: Unregistered model type: qwen3_next",
        "MiMo+vocab97@2": "AssertionError: 97 is not divisible by 2",
    },
    Stack(MEGATRON_BRIDGE, "0.3.1", "0.16.1"): {
        "MiMo@1": "ValueError: \u2717 Model architecture 'MiMoForCausalLM' is not yet supported",
        "GLM-4.5+tied@1": "ValueError: Unknown parallelism type: None",
    },
    Stack(MEGATRON_BRIDGE, "0.4.2", "0.17.1"): {
        "Qwen3-Next+bare@1": "AttributeError: 'NoneType' object has no attribute 'megatron_module'",
        "DeepSeek-V3+tied@1": "ValueError: Unknown parallelism type: None",
        "GLM-4.5+tied@1": "ValueError: Unknown parallelism type: None",
    },
    Stack(MEGATRON_BRIDGE, "0.6.2", "0.19.2"): {"MiMo+vocab97@2": "AssertionError: 97 is not divisible by 2"},
}
#: What is built without MTP, although the config promises it: nothing raises.
WITHOUT_MTP: Final[dict[Stack, tuple[str, ...]]] = {
    Stack(MBRIDGE, "0.15.1", "0.16.1"): ("GLM-4.5@1",),
    Stack(MBRIDGE, "0.15.1", "0.19.2"): ("GLM-4.5@1",),
    Stack(MEGATRON_BRIDGE, "0.3.1", "0.16.1"): ("Qwen3-Next+bare@1", "DeepSeek-V3@1"),
}
#: Whose output layer is built, not tied, and then finds no tensor: it stays as it was initialized. Nothing raises.
LEFT_AT_RANDOM: Final[dict[Stack, tuple[str, ...]]] = {
    Stack(MEGATRON_BRIDGE, version, core): ("DeepSeek-V3+tied@1", "GLM-4.5+tied@1")
    for version, core in (("0.5.1", "0.18.2"), ("0.6.2", "0.19.2"))
}
#: What comes back with the rows that Megatron-Bridge's ``should_pad_vocab`` has added.
PADDED: Final[dict[Stack, tuple[str, ...]]] = {
    Stack(MEGATRON_BRIDGE, "0.6.2", "0.19.2"): ("MiMo+padded+vocab97@2",),
}
#: Faults put in on purpose, which some check must notice.
FAULTY: Final[dict[Stack, tuple[str, ...]]] = {
    Stack(*release, "0.19.2"): ("MiMo+dropped@1", "MiMo+exchanged@1", "MiMo+flipped@1", "MiMo+swapped@1")
    for release in ((MBRIDGE, "0.15.1"), (MEGATRON_BRIDGE, "0.6.2"))
}


#: What the plugin does to each bridge; everything else is not needed there.
_MENDED_MBRIDGE: Final = (
    "bridge.mbridge_rope",
    "bridge.mbridge_deepseek.config",
    "bridge.mbridge_deepseek.names",
    *(f"bridge.mbridge_mimo.{part}" for part in ("layer_spec", "load", "names", "save")),
)
_MODEL_TYPE: Final = "bridge.mbridge_model_type"  # megatron-core 0.17 removed a member that mbridge asks for
MENDED: Final[dict[Stack, tuple[str, ...]]] = {
    Stack(MBRIDGE, "0.15.1", "0.16.1"): _MENDED_MBRIDGE,
    **{Stack(MBRIDGE, "0.15.1", core): (*_MENDED_MBRIDGE, _MODEL_TYPE) for core in ("0.17.1", "0.18.2", "0.19.2")},
    Stack(MEGATRON_BRIDGE, "0.3.1", "0.16.1"): ("bridge.megatron_bridge_qwen3_next.layers",),
    Stack(MEGATRON_BRIDGE, "0.4.2", "0.17.1"): ("bridge.megatron_bridge_qwen3_next.names",),
    Stack(MEGATRON_BRIDGE, "0.5.1", "0.18.2"): (),
    Stack(MEGATRON_BRIDGE, "0.6.2", "0.19.2"): (),
}


def cases(stack: Stack) -> tuple[str, ...]:
    """All that the stack's processes run: bare first; tied last, since mbridge takes what follows for tied too."""
    failures = FAILURES.get(stack, {})
    tables = (WITHOUT_MTP, LEFT_AT_RANDOM, PADDED, FAULTY)
    found = (*ROUND_TRIPS[stack], *failures, *(text for table in tables for text in table.get(stack, ())))
    return tuple(sorted(found, key=lambda text: ("+bare" not in text, "+tied" in text, text[-1])))
