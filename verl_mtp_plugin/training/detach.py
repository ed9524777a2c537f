"""What enters the MTP block, cut off from what computed it: no gradient leaves the block.

The trunk's hidden states are what enters it in released megatron-core. megatron-core dev with hyper-connections hands
over a second tensor, ``mhc_multistream``, and computes from that one; a block of somebody else's may take more. So
whatever requires a gradient is cut off, under whatever name and however deeply nested it comes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch


def leaf(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, at the start of a graph of their own.

    It requires a gradient: activation recompute runs backward only if some input asks for one.
    """
    return tensor.detach().requires_grad_()


def detached(value: Any) -> Any:
    """``value`` with a :func:`leaf` for each tensor in it that requires a gradient.

    Looked into are lists, tuples, dictionaries and dataclasses; what holds no such tensor is returned as it is.
    """
    if isinstance(value, torch.Tensor):
        return leaf(value) if value.requires_grad else value
    if isinstance(value, Mapping):
        named = {key: detached(part) for key, part in value.items()}
        return value if all(named[key] is value[key] for key in value) else named
    if isinstance(value, list | tuple):
        make: Any = getattr(type(value), "_make", type(value))  # a named tuple's, which takes one argument as well
        parts = [detached(part) for part in value]
        return value if all(new is old for new, old in zip(parts, value, strict=True)) else make(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return _with_fields(value)
    return value


def _with_fields(value: Any) -> Any:
    changed = None
    for field in fields(value):
        before = getattr(value, field.name, None)
        after = detached(before)
        if after is not before:
            changed = changed or copy.copy(value)
            object.__setattr__(changed, field.name, after)  # also where it is frozen
    return value if changed is None else changed


class DetachedEmbedding:
    """The model's embedding, whose output is cut off. Attributes are the embedding's: megatron-core asks for some."""

    def __init__(self, embedding: Callable[..., torch.Tensor]) -> None:
        self._embedding = embedding

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._embedding(*args, **kwargs).detach()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedding, name)
