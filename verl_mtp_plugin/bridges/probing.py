"""What both probes ask with: the names that megatron-core gives the parameters of an MTP layer, and messages."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

#: Norms that every MTP layer has, whatever transformer layer is in it.
NORMS: Final = ("enorm", "hnorm", "final_layernorm")
#: What joins embedding and hidden state: one projection, or two with hyper-connections (DeepSeek-V4) where
#: megatron-core has them.
JOINED: Final = ("eh_proj",)
APART: Final = ("e_proj", "h_proj")
#: The transformer layer in an MTP layer, from megatron-core 0.17 on and before.
INNER_LAYERS: Final = ("mtp_model_layer", "transformer_layer")
#: Within it, a parameter of every attention: standard, gated or latent.
ATTENTION_OUTPUT: Final = "self_attention.linear_proj.weight"

#: Megatron's option, new in megatron-core 0.17, to run one MTP layer several times.
SHARED: Final = "mtp_use_repeated_layer"


def inner_layer() -> str:
    """How the installed megatron-core names the transformer layer in an MTP layer.

    Raises:
        LookupError: by neither of the names known here.
    """
    from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayerSubmodules

    found = {field.name for field in fields(MultiTokenPredictionLayerSubmodules)}
    names = [name for name in INNER_LAYERS if name in found]
    if not names:
        raise LookupError(f"megatron-core's MTP layer consists of {', '.join(sorted(found))}")
    return names[0]


def projections() -> tuple[tuple[str, ...], ...]:
    """The projections that the installed megatron-core may build an MTP layer with: any one of these groups."""
    from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer

    assigned = inspect.unwrap(MultiTokenPredictionLayer.__init__).__code__.co_names
    return (JOINED, APART) if set(APART) <= set(assigned) else (JOINED,)


def built_layers(config: Any, layers: int) -> Iterator[str]:
    """The prefix of each MTP layer that is built: one alone where all depths share it."""
    # Only where the config's class has it: with an older megatron-core an override of that name does nothing.
    shared = hasattr(type(config), SHARED) and getattr(config, SHARED)
    yield from (f"mtp.layers.{i}" for i in range(1 if shared else layers))


def counted(layers: int) -> str:
    """``"1 MTP layer"``, ``"2 MTP layers"``."""
    return f"{layers} MTP layer{'' if layers == 1 else 's'}"


def wrong_number(builder: str, found: int | None, layers: int) -> str | None:
    """Why the number of MTP layers that a bridge would build is wrong; None if it is right.

    Args:
        builder: the bridge's class.
        found: ``mtp_num_layers`` of the config that it would build with.
        layers: how many the Hugging Face config promises.
    """
    if layers < 1:
        return "the Hugging Face config promises no MTP layer"
    if not found:
        return f"{builder} builds this model without MTP layers (mtp_num_layers={found})"
    if found != layers:
        return f"{builder} builds {counted(found)} where the Hugging Face config promises {layers}"
    return None


def said(error: BaseException, limit: int = 100) -> str:
    """An error's type and the first line of what it says, whole words within ``limit`` characters."""
    text = next(iter(str(error).strip().splitlines()), "")
    if len(text) > limit:
        text = text[:limit].rpartition(" ")[0] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
