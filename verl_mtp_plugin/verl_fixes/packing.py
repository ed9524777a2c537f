"""Packed sequences are cut out of a nested tensor once, not once for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Rows:
    """A jagged nested tensor [b, j1, ...] whose sequences are looked up in a list.

    PyTorch cuts all sequences out of a jagged tensor to answer for one, so that a loop over them takes time in the
    square of their number: 0.2 s for 256 of them, and verl has such a loop for every tensor that it packs. Whatever
    else is asked, of it or of PyTorch, the tensor answers.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor, self._sequences = tensor, tensor.unbind()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def __getitem__(self, where: Any) -> torch.Tensor:
        return self._sequences[where] if isinstance(where, int) else self._tensor[where]

    def __len__(self) -> int:
        return len(self._sequences)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(part: Any) -> Any:
            return part._tensor if isinstance(part, cls) else part

        return function(*map(plain, args), **{name: plain(part) for name, part in (kwargs or {}).items()})


def pack(original: Callable[..., Any], input_ids: Any, *args: Any, **kwargs: Any) -> Any:
    """verl's own packing, over :class:`Rows`; what is no jagged tensor passes through."""
    if not isinstance(input_ids, torch.Tensor) or input_ids.layout is not torch.jagged:
        return original(input_ids, *args, **kwargs)
    rows = Rows(input_ids)
    # A pipeline stage that embeds nothing gets its input back.
    return tuple(input_ids if part is rows else part for part in original(rows, *args, **kwargs))
