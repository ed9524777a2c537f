"""Activation recompute of the MTP layer: nothing of its arguments gets lost, or where it does not belong.

``MultiTokenPredictionLayer._checkpointed_forward`` checkpoints the layer's body. megatron-core 0.15 to 0.17 hand every
argument to autograd, which takes tensors only (packed sequence parameters are none); 0.18 is called with a padding mask
that it does not take. verl puts a copied body on instances, which fits the first kind only; here upstream's own method
runs in every case, with arguments that it can take.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch

from .request import RequestSlot


def build(original: Callable[..., Any]) -> RequestSlot:
    """The replacement for ``MultiTokenPredictionLayer._checkpointed_forward``."""
    parameters = signature(original).parameters
    if "forward_func" in parameters:
        function = _tensors_only(original)
    elif "padding_mask" in parameters:
        function = original  # megatron-core >= 0.19 is right; only verl's instance patch must not run
    else:
        function = _with_padding_mask(original)
    return RequestSlot("_checkpointed_forward", original, function)


def _tensors_only(original: Callable[..., Any]) -> Callable[..., Any]:
    """Tensors go through the checkpoint; everything else is kept beside it."""

    @functools.wraps(original)
    def checkpointed_forward(self: Any, forward_func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tensors = {name: value for name, value in kwargs.items() if torch.is_tensor(value)}
        others = {name: value for name, value in kwargs.items() if name not in tensors}

        def run(*values: Any, **named: Any) -> Any:
            # Checkpointed, upstream passes the values in order; with recompute_method "block" it calls by name.
            in_order = dict(zip(tensors, values[len(args) :]))
            return forward_func(*values[: len(args)], **in_order, **named, **others)

        return original(self, run, *args, **tensors)

    return checkpointed_forward


class _LayerWith:
    """A layer whose body is called with one more argument, now and when the checkpoint is recomputed."""

    def __init__(self, layer: Any, **extra: Any) -> None:
        self._layer = layer
        self._proj_and_transformer_layer = functools.partial(layer._proj_and_transformer_layer, **extra)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _with_padding_mask(original: Callable[..., Any]) -> Callable[..., Any]:
    """The mask (boolean, [b, s], no gradient) goes around the checkpoint, straight to the layer's body."""

    @functools.wraps(original)
    def checkpointed_forward(self: Any, *args: Any, padding_mask: Any = None, **kwargs: Any) -> Any:
        return original(_LayerWith(self, padding_mask=padding_mask), *args, **kwargs)

    return checkpointed_forward
