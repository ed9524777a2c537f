"""DeepSeek-V3 through mbridge 0.15.1, which builds none on a megatron-core of its time or newer.

It passes ``max_position_embeddings``, which megatron-core >= 0.14 calls ``original_max_position_embeddings``; it looks
for ``rope_scaling`` where transformers 5 no longer has it (and for ``rope_theta``, see :mod:`.mbridge_rope`); and it
names the tensors of the MTP layer for a trunk of 61 layers alone, and only where megatron-core still has the name of
before 0.17 for the layer inside it. Not critical: a job with another model family must not fail over DeepSeek's bridge.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from ...environment import Environment
from ...patching import Patch, PatchSet, Target, Verdict, applicable, around, not_needed
from .mbridge_mimo import LAYER_NAME, OLD_LAYER_NAME

MODULE: Final = "mbridge.models.deepseek_v3"
UPSTREAM: Final = "fixed on mbridge's main after 0.15.1; delete when 0.15.1 is no longer supported"
UPSTREAM_NAMES: Final = "no release, nor mbridge's main; delete when DeepseekV3Bridge asks for neither"

#: An argument of Megatron's config before megatron-core 0.14, and since.
OLD_LENGTH: Final = "max_position_embeddings"
LENGTH: Final = "original_max_position_embeddings"
#: Hugging Face's names in ``rope_parameters`` (transformers 5), by those of Megatron's config.
SCALING: Final = {
    "rope_type": "rope_type",
    "rotary_scaling_factor": "factor",
    LENGTH: LENGTH,
    **{name: name for name in ("mscale", "mscale_all_dim", "beta_fast", "beta_slow")},
}


# -- what each replacement does around the original --------------------------------------------------------------------


def _build_base_config(original: Callable[..., Any], bridge: Any, *args: Any, **options: Any) -> Any:
    if OLD_LENGTH in options:
        options[LENGTH] = options.pop(OLD_LENGTH)
    return original(bridge, *args, **options | _scaling(bridge.hf_config))


def _scaling(hf_config: Any) -> dict[str, Any]:
    """Megatron's arguments for a scaled rope that mbridge has not seen, which asks for ``rope_scaling`` alone."""
    rope = getattr(hf_config, "rope_parameters", None) or {}
    if "rope_scaling" in hf_config or rope.get("rope_type", "default") == "default":
        return {}
    return {ours: rope[theirs] for ours, theirs in SCALING.items() if theirs in rope}


def _hf_names(original: Callable[..., Any], bridge: Any, name: str) -> list[str]:
    with_61_layers, layers = copy.copy(bridge), bridge.config.num_layers
    with_61_layers.config = copy.copy(bridge.config)
    with_61_layers.config.num_layers = 61
    names: list[str] = original(with_61_layers, name.replace(LAYER_NAME, OLD_LAYER_NAME))
    return [name.replace("model.layers.61.", f"model.layers.{layers}.") for name in names]


# -- probes ------------------------------------------------------------------------------------------------------------


class _HFConfig:
    """An HF config in which every number is 1."""

    rope_parameters: Final = {"rope_type": "default", "rope_theta": 1}
    rope_scaling: Final = rope_parameters  # transformers 5 has it if asked for by name, but does not list it

    def __getattr__(self, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))


def _passes_the_old_length(environment: Environment, module: ModuleType) -> Verdict:
    class Asked(module.DeepseekV3Bridge):  # type: ignore[name-defined]
        def _build_base_config(self, **arguments: Any) -> Any:
            return arguments

    bridge = object.__new__(Asked)
    bridge.hf_config, bridge.extra_args = _HFConfig(), {}
    if OLD_LENGTH not in bridge._build_config():
        return not_needed(f"DeepseekV3Bridge does not pass {OLD_LENGTH}")
    if OLD_LENGTH in {field.name for field in dataclasses.fields(module.MLATransformerConfig)}:
        return not_needed(f"Megatron's config takes {OLD_LENGTH}")
    return applicable(f"DeepseekV3Bridge passes {OLD_LENGTH}, which Megatron's config does not take")


def _names_any_mtp_layer(environment: Environment, module: ModuleType) -> Verdict:
    bridge = object.__new__(module.DeepseekV3Bridge)
    bridge.config = SimpleNamespace(num_layers=3, mtp_num_layers=1)
    try:
        names = bridge._convert_mtp_param(f"mtp.layers.0{LAYER_NAME}mlp.linear_fc2.weight")
    except (AssertionError, NotImplementedError) as error:
        return applicable(f"DeepseekV3Bridge names no MTP layer after three others: {error}")
    return not_needed(f"DeepseekV3Bridge maps {LAYER_NAME.strip('.')} to {names[0]}")


PATCHES: Final[tuple[Patch | PatchSet, ...]] = (
    PatchSet(
        "bridge.mbridge_deepseek",
        (
            Patch(
                id="bridge.mbridge_deepseek.config",
                target=Target(MODULE, "DeepseekV3Bridge._build_base_config"),
                reason="TypeError: MLATransformerConfig got an unexpected keyword argument 'max_position_embeddings'; "
                "and with transformers 5 a scaled rope would be built unscaled",
                upstream=UPSTREAM,
                decide=_passes_the_old_length,
                build=around(_build_base_config),
            ),
            Patch(
                id="bridge.mbridge_deepseek.names",
                target=Target(MODULE, "DeepseekV3Bridge._convert_mtp_param"),
                reason='loading ends in AssertionError: "mtp not found" with megatron-core >= 0.17, "only support 61 '
                'layers for now" with a trunk of another size',
                upstream=UPSTREAM_NAMES,
                decide=_names_any_mtp_layer,
                build=around(_hf_names),
            ),
        ),
    ),
)
