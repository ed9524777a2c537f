"""MTP that is to be trained must have been built.

A bridge that does not know a model's MTP layers builds the model without them, and verl trains on in silence: no MTP
loss, no MTP tensor exported, and the rollout drafts with a head that grows stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import UnsupportedError
from ..models.family import MBRIDGE, MEGATRON_BRIDGE
from .support import label


def check_mtp_was_built(modules: Iterable[Any], *, bridge: str = "the bridge") -> None:
    """Check that every pipeline stage which must hold MTP layers does.

    Without a layout of one's own these are on the last stage, where the labels arrive. A stage before it is asked for
    nothing but a config that has MTP.

    Args:
        modules: the model chunks of this rank, wrapped or not. What holds no ``GPTModel`` is left to others.
        bridge: who built them, for the message.

    Raises:
        UnsupportedError: a ``GPTModel`` without MTP.
    """
    for model in _gpt_models(modules):
        depths = model.config.mtp_num_layers
        built = getattr(model, "mtp", None) is not None and bool(model.mtp.layers)
        if depths and (built or not model.post_process):
            continue
        state = "no MTP block on the last pipeline stage" if depths else f"config.mtp_num_layers={depths}"
        raise UnsupportedError(
            found=f"a {type(model).__name__} that {bridge} built with {state}",
            expected="MTP layers on the last pipeline stage, since mtp.enable_train=True",
            advice="Try the other bridge (actor_rollout_ref.actor.megatron.vanilla_mbridge) or a newer release of this "
            "one, give MTP no stage of its own in pipeline_model_parallel_layout, or set "
            "actor_rollout_ref.model.mtp.enable_train=False.",
        )


def _gpt_models(modules: Iterable[Any]) -> Iterator[Any]:
    from megatron.core.models.gpt.gpt_model import GPTModel

    for chunk in modules:
        yield from (module for module in chunk.modules() if isinstance(module, GPTModel))


def build_megatron_module(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """``MegatronEngine._build_megatron_module``, checked where MTP is to be trained on what it built."""
    modules = original(engine, *args, **kwargs)
    mtp = engine.model_config.mtp
    # A value model has no labels, and an engine without optimizer trains nothing.
    trains = mtp.enable and mtp.enable_train and not engine.is_value_model and not engine.engine_config.forward_only
    if trains:
        check_mtp_was_built(modules, bridge=bridge_name(vanilla=engine.vanilla_bridge))
    return modules


def bridge_name(*, vanilla: bool) -> str:
    """The bridge that verl uses, and its version."""
    return label(MBRIDGE if vanilla else MEGATRON_BRIDGE)
