"""Qwen3-Next through Megatron-Bridge 0.3.1 and 0.4.2.

0.3.1 can convert the MTP layer but never builds it: its provider says ``mtp_num_layers=None`` whatever the HF config
has. 0.4.2, which needs megatron-core >= 0.17, maps the layer inside the MTP layer by the name it had before 0.17, so
loading ends in an AttributeError after a warning for each tensor. Not critical: other models must not fail over this.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from ...environment import Environment
from ...patching import Patch, PatchSet, Target, Verdict, applicable, around, not_needed
from .mbridge_mimo import LAYER_NAME, OLD_LAYER_NAME

MODULE: Final = "megatron.bridge.models.qwen.qwen3_next_bridge"
LAYERS: Final = "mtp_num_layers"
#: Keys of the HF config that may hold the number of MTP layers.
HF_LAYERS: Final = ("num_nextn_predict_layers", "mtp_num_hidden_layers")


def _provider_bridge(original: Callable[..., Any], bridge: Any, hf_pretrained: Any, *args: Any, **options: Any) -> Any:
    provider = original(bridge, hf_pretrained, *args, **options)
    if provider.mtp_num_layers is None:
        promised = (getattr(hf_pretrained.config, key, None) for key in HF_LAYERS)
        provider.mtp_num_layers = next((layers for layers in promised if layers), None)
    return provider


def _mapping_registry(original: Callable[..., Any], bridge: Any) -> Any:
    registry = original(bridge)
    for mapping in registry.mappings:  # made anew by each call
        mapping.megatron_param = mapping.megatron_param.replace(OLD_LAYER_NAME, LAYER_NAME)
    return type(registry)(*registry.mappings)  # which compiles the patterns


def _sets_the_number_itself(environment: Environment, module: ModuleType) -> Verdict:
    constants = inspect.unwrap(module.Qwen3NextBridge.provider_bridge).__code__.co_consts
    # Names of a call's arguments are constants, all in one or, where there are many, one by one.
    if any(names == LAYERS or (isinstance(names, tuple) and LAYERS in names) for names in constants):
        return applicable(f"Qwen3NextBridge.provider_bridge gives its provider an {LAYERS} of its own")
    return not_needed(f"Qwen3NextBridge leaves {LAYERS} to what all bridges read from the HF config")


def _knows_the_layers_name(environment: Environment, module: ModuleType) -> Verdict:
    from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer  # Megatron-Bridge has it

    names = inspect.unwrap(MultiTokenPredictionLayer.__init__).__code__.co_names
    if LAYER_NAME.strip(".") not in names:
        return not_needed(f"megatron-core calls the layer {OLD_LAYER_NAME.strip('.')}")
    registry = object.__new__(module.Qwen3NextBridge).mapping_registry()
    if registry.megatron_to_hf_lookup(f"mtp.layers.0{LAYER_NAME}mlp.router.weight"):
        return not_needed(f"Qwen3NextBridge maps {LAYER_NAME.strip('.')}")
    return applicable(f"Qwen3NextBridge maps only {OLD_LAYER_NAME.strip('.')}")


PATCHES: Final[tuple[Patch | PatchSet, ...]] = (
    Patch(
        id="bridge.megatron_bridge_qwen3_next.layers",
        target=Target(MODULE, "Qwen3NextBridge.provider_bridge"),
        reason="Megatron-Bridge 0.3.1 builds Qwen3-Next without MTP whatever its config says",
        upstream="fixed in Megatron-Bridge 0.4; delete when 0.3.1 is no longer supported",
        decide=_sets_the_number_itself,
        build=around(_provider_bridge),
    ),
    Patch(
        id="bridge.megatron_bridge_qwen3_next.names",
        target=Target(MODULE, "Qwen3NextBridge.mapping_registry"),
        reason="with Megatron-Bridge 0.4.2 no tensor of Qwen3-Next's MTP layer but four is mapped, and loading fails",
        upstream="fixed in Megatron-Bridge 0.5; delete when 0.4.2 is no longer supported",
        decide=_knows_the_layers_name,
        build=around(_mapping_registry),
    ),
)
