"""A critic trains a value head: it has no labels, so MTP has no part in it.

verl 0.7.1's ``MegatronEngineWithValueHead.forward_step`` passes ``enable_mtp=`` to a function whose parameter is called
``mtp_enable_train``: a TypeError in every critic, with MTP or without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def forward_fn(original: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """``get_mcore_forward_no_padding_fn``: its function takes and drops what only value models pass."""
    forward = original(*args, **kwargs)

    @functools.wraps(forward)
    def without_mtp(*call: Any, enable_mtp: bool = False, **keywords: Any) -> Any:
        return forward(*call, **keywords)

    return without_mtp
