"""What a bridge built: MTP where it was asked for, all layers of it, and none where it was not.

A bridge that does not know a model's MTP layers builds the model without them, and verl trains on in silence: no MTP
loss, no MTP tensor exported, and the rollout drafts with a head that grows stale. MTP layers that nobody asked for are
as silent: megatron-core trains them, and through them the policy, as soon as it is given labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import UnsupportedError
from .probing import counted


def check_mtp_is_built(modules: Iterable[Any], layers: int, *, bridge: str) -> None:
    """Check that every pipeline stage which must hold the MTP layers does.

    Without a layout of one's own these are on the last stage, where the labels arrive. A stage before it is asked for
    nothing but a config that has MTP.

    Args:
        modules: the model chunks of this rank, wrapped or not. What holds no language model is left to others.
        layers: how many MTP layers there must be.
        bridge: who built them, for the message.

    Raises:
        UnsupportedError: a language model without MTP, or with another number of layers.
    """
    for model in _language_models(modules):
        configured = model.config.mtp_num_layers
        built = _mtp_layers(model)
        if not configured:
            raise _not_built(model, bridge, f"config.mtp_num_layers={configured}", layers)
        if not built and model.post_process:
            raise _not_built(model, bridge, "no MTP block on the last pipeline stage", layers)
        # A repeated layer (Nemotron) is one that is run several times.
        wanted = 1 if getattr(model.config, "mtp_use_repeated_layer", False) else layers
        if configured != layers or (built and built != wanted):
            state = f"{counted(built)} here and config.mtp_num_layers={configured}"
            raise _not_built(model, bridge, state, layers)


def check_no_mtp_is_built(modules: Iterable[Any], *, bridge: str) -> None:
    """Check that no model holds MTP layers.

    Raises:
        UnsupportedError: one does.
    """
    for chunk in modules:
        for model in chunk.modules():
            if _mtp_layers(model):
                raise UnsupportedError(
                    found=f"a {type(model).__name__} that {bridge} built with {counted(_mtp_layers(model))}",
                    expected="none, since mtp.enable=False",
                    advice="Train them (actor_rollout_ref.model.mtp.enable=True), use the other bridge "
                    "(actor_rollout_ref.actor.megatron.vanilla_mbridge), or give it a copy of the model whose "
                    "config.json promises no MTP layers.",
                )


def _not_built(model: Any, bridge: str, state: str, layers: int) -> UnsupportedError:
    return UnsupportedError(
        found=f"a {type(model).__name__} that {bridge} built with {state}",
        expected=f"{counted(layers)} on the last pipeline stage, since mtp.enable=True",
        advice="Try the other bridge (actor_rollout_ref.actor.megatron.vanilla_mbridge) or a newer release of this "
        "one, give MTP no stage of its own in pipeline_model_parallel_layout, or set "
        "actor_rollout_ref.model.mtp.enable=False.",
    )


def _mtp_layers(model: Any) -> int:
    block = getattr(model, "mtp", None)
    return len(getattr(block, "layers", None) or ())


def _language_models(modules: Iterable[Any]) -> Iterator[Any]:
    """GPTModel and its like (HybridModel): an embedding or a head around a decoder, and a config with MTP."""
    from megatron.core.models.common.language_module.language_module import LanguageModule

    for chunk in modules:
        for module in chunk.modules():
            if isinstance(module, LanguageModule) and hasattr(module, "post_process"):
                yield module
