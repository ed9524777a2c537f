"""Can Megatron-Bridge build and convert a model's MTP layers? Asked before any weight is loaded.

Its provider, which is the config that the model will be built with, says how many there will be; its mapping registry
which parameters have a tensor in the checkpoint. A parameter without a mapping is no error to Megatron-Bridge: it warns
and goes on, and the parameter keeps its random values.
"""

from __future__ import annotations

from typing import Any, Final

from ..models.family import MEGATRON_BRIDGE
from .probing import ATTENTION_OUTPUT, NORMS, built_layers, inner_layer, projections, said, wrong_number
from .support import Support

#: How a parameter of an MTP layer is named, after the prefix of models that see images ("language_model.").
LAYERS: Final = "mtp.layers."


def knows(hf_config: Any) -> bool:
    """Whether Megatron-Bridge has a class for a Hugging Face config's model."""
    from megatron.bridge import AutoBridge

    try:
        AutoBridge.from_hf_config(hf_config)
    except ValueError:
        return False
    return True


def probe(bridge: Any, provider: Any, layers: int) -> Support:
    """Ask Megatron-Bridge for a model's MTP.

    Args:
        bridge: a ``megatron.bridge.AutoBridge``.
        provider: what its ``to_megatron_provider`` returned, after verl's overrides and ``finalize``.
        layers: the number of MTP layers that the Hugging Face config promises.

    Returns:
        ``supported`` is None where this release has not what is asked here.
    """
    try:
        model_bridge = bridge._model_bridge  # a new object each time, in all releases
        name = type(model_bridge).__name__
        why_not = wrong_number(name, provider.mtp_num_layers, layers) or _not_mapped(
            name, _registry(bridge, model_bridge), provider, layers
        )
    except Exception as error:  # a private attribute that moved, for one: no answer, and no reason to fail
        return Support(MEGATRON_BRIDGE, None, f"it could not be asked: {said(error)}")
    if why_not is not None:
        return Support(MEGATRON_BRIDGE, False, why_not)
    return Support(MEGATRON_BRIDGE, True, f"{name} builds the MTP layers and maps their weights")


def _registry(bridge: Any, model_bridge: Any) -> Any:
    """The mappings with which weights would be loaded and exported.

    Up to 0.5 some bridges learn only from ``build_conversion_tasks`` what their MTP mappings depend on: the config, the
    checkpoint's tensors. So that is called, and left as soon as it has the mappings. The model, which is not there yet,
    comes after that.
    """
    made = model_bridge.mapping_registry

    def caught() -> Any:
        raise _Made(made())

    model_bridge.mapping_registry = caught
    try:
        model_bridge.build_conversion_tasks(bridge.hf_pretrained, [])
    except _Made as found:
        return found.registry
    raise LookupError("build_conversion_tasks asks for no mapping_registry")


class _Made(Exception):
    def __init__(self, registry: Any) -> None:
        self.registry = registry


def _not_mapped(name: str, registry: Any, provider: Any, layers: int) -> str | None:
    """Which parameter of the MTP layers has no mapping."""
    patterns = [str(mapping.megatron_param) for mapping in registry.get_all_mappings()]
    prefixes = sorted({pattern.partition(LAYERS)[0] for pattern in patterns if LAYERS in pattern})
    if not prefixes:
        return f"{name} has no mapping for any weight of an MTP layer"
    reasons = [
        _unmapped(registry, patterns, [prefix + layer for layer in built_layers(provider, layers)], projection)
        for prefix in prefixes
        for projection in projections()
    ]
    return None if None in reasons else f"{name} has no mapping for {reasons[0]}"


def _unmapped(registry: Any, patterns: list[str], layers: list[str], projection: tuple[str, ...]) -> str | None:
    inner = inner_layer()
    for layer in layers:
        for part in (*projection, *NORMS):
            if registry.megatron_to_hf_lookup(f"{layer}.{part}.weight") is None:
                return f"{layer}.{part}.weight"
        # What the inner layer consists of differs from family to family, down to several layers in one: any part of it.
        every = layer.rpartition(".")[0] + ".*"
        known = any(pattern.startswith((f"{layer}.{inner}.", f"{every}.{inner}.")) for pattern in patterns)
        if not known and registry.megatron_to_hf_lookup(f"{layer}.{inner}.{ATTENTION_OUTPUT}") is None:
            return f"{layer}.{inner}.*"
    return None
