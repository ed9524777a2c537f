"""Faults put in on purpose, so that every check is seen to notice one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

Exported = dict[str, Tensor]
#: The check that must notice: a key of the outcome.
NOTICED_BY: Final = {
    "dropped": "missing",
    "flipped": "different",
    "swapped": "different",
    "exchanged": "wrong_in_megatron",
}


def swapped(model: Any) -> None:
    """The halves of eh_proj, as a bridge leaves them that forgets to exchange them on one way."""
    weight = model.mtp.layers[0].eh_proj.weight.data
    weight.copy_(weight.roll(weight.shape[1] // 2, dims=1))


def exchanged(model: Any) -> None:
    """The norms of embedding and hidden state. The way back undoes it: see :func:`exchanged_back`."""
    layer = model.mtp.layers[0]
    enorm = layer.enorm.weight.data.clone()
    layer.enorm.weight.data.copy_(layer.hnorm.weight.data)
    layer.hnorm.weight.data.copy_(enorm)


def exchanged_back(exported: Exported) -> None:
    """As a mapping exports it that has the two names the wrong way round."""
    embedding, hidden = (f"model.mtp_layers.0.{name}_layernorm.weight" for name in ("token", "hidden"))
    exported[embedding], exported[hidden] = exported[hidden], exported[embedding]


def dropped(exported: Exported) -> None:
    """One MTP tensor that is not sent."""
    del exported["model.mtp_layers.0.mlp.up_proj.weight"]


def flipped(exported: Exported) -> None:
    """One bit of one number of the trunk."""
    bits = exported["model.layers.1.mlp.up_proj.weight"].clone().view(torch.int16)
    bits[3, 4] ^= 1
    exported["model.layers.1.mlp.up_proj.weight"] = bits.view(torch.bfloat16)


IN_MEGATRON: Final[dict[str, Callable[[Any], None]]] = {"swapped": swapped, "exchanged": exchanged}
IN_EXPORT: Final[dict[str, Callable[[Exported], None]]] = {
    "dropped": dropped,
    "exchanged": exchanged_back,
    "flipped": flipped,
}
