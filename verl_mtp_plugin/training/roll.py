"""Labels, masks and hidden states one position to the left, through megatron-core's own ``roll_tensor``.

It has two shapes. Releases up to 0.20 take a tensor and return it with its sum; megatron-core dev takes a list of
tensors and returns a list (#6246). Which one is there is seen from its parameters, and tried before anything is
patched.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from typing import Any

import torch


@lru_cache(maxsize=16)
def parameters(function: Callable[..., Any]) -> frozenset[str]:
    """The names of the parameters that ``function`` takes."""
    return frozenset(signature(function).parameters)


def roll(
    function: Callable[..., Any], tensor: torch.Tensor, *, cp_group: Any = None, packed_seq_params: Any = None
) -> torch.Tensor:
    """``tensor`` [..., s] one position to the left, within each sequence and across context-parallel ranks.

    Args:
        function: megatron-core's ``roll_tensor``.
        tensor: with context parallelism this rank's part.
        cp_group: of context parallelism, None without.
        packed_seq_params: bounds of packed sequences, None without; dropped where ``function`` knows no such thing.
    """
    known = parameters(function)
    arguments: dict[str, Any] = {"shifts": -1, "dims": -1, "cp_group": cp_group}
    if "packed_seq_params" in known:
        arguments["packed_seq_params"] = packed_seq_params
    if "return_sum" in known:
        arguments["return_sum"] = False  # nobody here looks at it
    given = [tensor] if "tensors" in known else tensor
    rolled: torch.Tensor = function(given, **arguments)[0]
    return rolled


def problem(function: Callable[..., Any]) -> str:
    """What keeps :func:`roll` from rolling with ``function``; "" if it was tried, and was right."""
    tokens = torch.tensor([[1, 2, 3]], device="cpu")
    try:
        rolled = roll(function, tokens)
    except Exception as error:  # whatever it is, this megatron-core cannot be called so
        return f"takes {', '.join(signature(function).parameters)} and ends in {type(error).__name__}: {error}"
    if not torch.is_tensor(rolled) or rolled.tolist() != [[2, 3, 0]]:
        return f"makes {rolled} of [[1, 2, 3]], not [[2, 3, 0]]"
    return ""
