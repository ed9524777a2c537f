"""Model classes besides ``GPTModel``, and verl's functions that know no other: patches as data, light to import."""

from __future__ import annotations

from inspect import getattr_static
from typing import Any, Final

from ..models import ModelClass, Seam
from ..patching import Patch, PatchSet, Target, around

#: Nemotron-H and its like. Before megatron-core 0.18 the class is MambaModel, which has MTP from 0.17 on.
HYBRID: Final = ModelClass("megatron.core.models.hybrid.hybrid_model", "HybridModel", Seam.FORWARD)
MAMBA: Final = ModelClass("megatron.core.models.mamba.mamba_model", "MambaModel", Seam.FORWARD)

VERL: Final = "verl.models.mcore.mtp_patch"
_REASON: Final = "verl prints a line and trains no MTP on a model that is no GPTModel, such as Nemotron's HybridModel"
_UPSTREAM: Final = "delete when verl's mtp_patch looks for MTP and not for GPTModel"


def _served(model: Any) -> Any:
    """The model inside its wrappers whose class takes requests, or None."""
    from .request import RequestSlot

    while hasattr(model, "module"):
        model = model.module
    model = getattr(model, "language_model", model)
    return model if isinstance(getattr_static(type(model), "_postprocess", None), RequestSlot) else None


def _patching_model(original: Any, model: Any) -> Any:
    served = _served(model)
    return original(model) if served is None else served


def _detach_encoder(original: Any, model: Any) -> Any:
    from megatron.core.models.gpt.gpt_model import GPTModel

    from .request import request

    served = _served(model)
    if served is None or isinstance(served, GPTModel):
        return original(model)
    if getattr(served, "mtp", None) is None:  # a pipeline stage without MTP
        return False
    request(served, detach_encoder=True)
    return True


VERL_FUNCTIONS: Final = PatchSet(
    "training.model_classes",
    (
        Patch(
            id="training.model_classes.find",
            target=Target(VERL, "_get_patching_model"),
            reason=_REASON,
            upstream=_UPSTREAM,
            build=around(_patching_model),
        ),
        Patch(
            id="training.model_classes.detach_encoder",
            target=Target(VERL, "patch_mtp_layer_get_embeddings"),
            reason="detach_encoder would be ignored on a model that is not a GPTModel",
            upstream=_UPSTREAM,
            build=around(_detach_encoder),
        ),
    ),
)

PATCHES: Final[tuple[Patch | PatchSet, ...]] = (HYBRID.patches(), MAMBA.patches(), VERL_FUNCTIONS)
