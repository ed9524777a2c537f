"""TransformerEngine on the CPU: plain PyTorch modules wherever megatron-core's layer specs ask for TransformerEngine's.

verl and the bridges build every model from the TransformerEngine layer specs; there is no switch to the local ones.

==================================  =================================================================
asked for                           stands in (:mod:`.te_modules`, :mod:`.te_experts`, :mod:`.te_attention`)
==================================  =================================================================
TENorm                              Norm
TELinear                            Linear (duplicated on every rank)
TEColumnParallelLinear              ColumnLinear, megatron-core's own layer
TERowParallelLinear                 RowLinear, megatron-core's own layer
TELayerNormColumnParallelLinear     LayerNormColumnLinear
TEColumn/RowParallelGroupedLinear   Column/RowGroupedLinear
TEDotProductAttention               DotProductAttention
TESpecProvider                      a subclass that never asks for TransformerEngine's version
==================================  =================================================================

``install()`` comes after :func:`.cuda.install` and before a model is built. Parameter names and shapes are
TransformerEngine's, so that bridges load and save the same weights. Kernels, fp8 and numerics are not.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_installed: set[str] = set()

#: Packages whose modules hold TransformerEngine's names by value.
HOLDERS = ("megatron.", "mbridge.")


def install() -> None:
    """Put the stand-ins in place. Once per process; modules imported before and after both get them."""
    if _installed:
        return
    extension = importlib.import_module("megatron.core.extensions.transformer_engine")
    if getattr(extension, "HAVE_TE", False):
        raise RuntimeError("TransformerEngine is installed here: the stand-ins would hide it")
    names = stand_ins()
    importlib.import_module("megatron.core.transformer.multi_latent_attention")  # without TransformerEngine: None each
    _rename_everywhere(names)  # the spec provider, imported next, copies them
    for name, value in names.items():
        setattr(extension, name, value)
    provider = importlib.import_module("megatron.core.extensions.transformer_engine_spec_provider")
    names["TESpecProvider"] = _spec_provider(vars(provider)["TESpecProvider"])
    _rename_everywhere(names)
    for module in ("megatron.core.models.gpt.gpt_layer_specs", "megatron.core.transformer.multi_token_prediction"):
        # Both import the names only where TransformerEngine is, and refuse its specs where HAVE_TE says that it is not.
        holder = importlib.import_module(module)
        holder.__dict__.update(HAVE_TE=True, TENorm=names["TENorm"], TESpecProvider=names["TESpecProvider"])
    # The last norm of a block that is made from a single layer's spec, which with TransformerEngine is its norm too.
    vars(importlib.import_module("megatron.core.transformer.transformer_block"))["LayerNormImpl"] = names["TENorm"]
    _installed.add("transformer_engine")


def stand_ins() -> dict[str, Any]:
    """The stand-in for each of TransformerEngine's classes, by its name."""
    from . import te_attention, te_experts, te_modules  # they import megatron-core

    return {
        "TENorm": te_modules.Norm,
        "TELinear": te_modules.Linear,
        "TEColumnParallelLinear": te_modules.ColumnLinear,
        "TERowParallelLinear": te_modules.RowLinear,
        "TELayerNormColumnParallelLinear": te_modules.LayerNormColumnLinear,
        "TEColumnParallelGroupedLinear": te_experts.ColumnGroupedLinear,
        "TERowParallelGroupedLinear": te_experts.RowGroupedLinear,
        "TEDotProductAttention": te_attention.DotProductAttention,
    }


def _rename_everywhere(names: dict[str, Any]) -> None:
    for name, module in list(sys.modules.items()):
        if not name.startswith(HOLDERS) or not isinstance(module, ModuleType):
            continue
        for known in names.keys() & vars(module).keys():
            setattr(module, known, names[known])


def _spec_provider(original: type) -> type:
    """The real provider, without its questions about a TransformerEngine version that is not there."""

    class SpecProvider(original):
        def layer_norm(self, *args: Any, **kwargs: Any) -> Any:
            return stand_ins()["TENorm"]

        def activation_func(self) -> None:
            """None is Megatron's own activation."""

        def grouped_mlp_modules(self, moe_use_grouped_gemm: bool, *args: Any) -> Any:
            if moe_use_grouped_gemm:
                return super().grouped_mlp_modules(moe_use_grouped_gemm, *args)
            backends = importlib.import_module("megatron.core.models.backends")
            return backends.LocalSpecProvider().grouped_mlp_modules(moe_use_grouped_gemm, *args)

    return SpecProvider
