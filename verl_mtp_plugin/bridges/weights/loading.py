"""Loading a Hugging Face checkpoint: every MTP parameter gets its weights, or keeps its initialization on purpose.

Megatron-Bridge warns of a tensor that is not there and leaves the parameter as it was made: a random MTP head that
looks loaded. mbridge ends in a KeyError that names one tensor. Asked before anything loads, on all ranks at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .missing import settle
from .source import names_on_disk
from .weight_names import has_mtp, is_mtp, plan_mbridge, plan_megatron_bridge


def load_weights(original: Any, bridge: Any, models: Any, weights_path: Any, *args: Any, **kwargs: Any) -> Any:
    """mbridge's ``Bridge.load_weights``, without the tensors that are missing on purpose.

    Raises:
        MissingWeightsError: the folder lacks tensors of MTP parameters, or the bridge has no name for some.
    """
    if not has_mtp(models):
        return original(bridge, models, weights_path, *args, **kwargs)
    settled = settle(
        lambda: plan_mbridge(bridge, models),
        lambda: bridge._get_safetensor_io(weights_path).load_hf_weight_names(),
        models,
        weights_path,
    )
    with _leaving_out(bridge, settled):
        return original(bridge, models, weights_path, *args, **kwargs)


def load_weights_hf_to_megatron(
    original: Any, bridge: Any, hf_pretrained: Any, megatron_model: Any, *args: Any, **kwargs: Any
) -> Any:
    """Megatron-Bridge's ``MegatronModelBridge.load_weights_hf_to_megatron``. It skips what is missing by itself.

    Raises:
        MissingWeightsError: the checkpoint lacks tensors of MTP parameters, or the bridge has no name for some.
    """
    if has_mtp(megatron_model):
        settle(
            lambda: plan_megatron_bridge(bridge, hf_pretrained, megatron_model),
            lambda: names_on_disk(hf_pretrained),
            megatron_model,
            hf_pretrained.model_name_or_path,
        )
    return original(bridge, hf_pretrained, megatron_model, *args, **kwargs)


@contextmanager
def _leaving_out(bridge: Any, absent: frozenset[str]) -> Iterator[None]:
    """mbridge asks this method what there is to load; within, not MTP parameters of which a tensor is ``absent``."""
    if not absent:
        yield
        return
    original = bridge._weight_name_mapping_mcore_local_to_global

    def kept(name: str) -> bool:
        return not is_mtp(name) or absent.isdisjoint(bridge._weight_name_mapping_mcore_to_hf(name))

    def present(*args: Any, **kwargs: Any) -> dict[str, str]:
        return {local: name for local, name in original(*args, **kwargs).items() if kept(name)}

    bridge._weight_name_mapping_mcore_local_to_global = present
    try:
        yield
    finally:
        del bridge._weight_name_mapping_mcore_local_to_global
