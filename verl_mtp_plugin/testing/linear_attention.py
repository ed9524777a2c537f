"""Qwen3-Next's linear attention without flash-linear-attention's kernels: enough to build it, load it and save it.

megatron-core refuses to build a GatedDeltaNet where that package is missing, though only its forward pass needs it.
Here the layer is built, and its forward pass says what is missing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, Final

#: A module, and from 0.19 on a package whose modules copy the names. megatron-core 0.15 has none.
LAYER: Final = "megatron.core.ssm.gated_delta_net"
KERNELS: Final = ("causal_conv1d", "chunk_gated_delta_rule", "l2norm")


def install() -> None:
    """Let GatedDeltaNet be built. After :func:`.cuda.install_megatron`; does nothing where the kernels are."""
    try:
        if vars(importlib.import_module(LAYER))["HAVE_FLA"]:
            return
    except ModuleNotFoundError:
        return
    present: dict[str, Any] = {"HAVE_FLA": True} | {name: _absent(name) for name in KERNELS}
    for module in [module for name, module in sys.modules.items() if f"{name}.".startswith(f"{LAYER}.")]:
        defined = vars(module)
        defined.update({name: present[name] for name in present.keys() & defined.keys()})


def _absent(kernel: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{kernel} of flash-linear-attention needs a GPU: this one is for building alone")

    return call
