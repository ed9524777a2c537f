"""The training patches, as data: light to import, since they are armed at ``import verl``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from inspect import signature
from types import ModuleType
from typing import Any, Final

from ..environment import Environment
from ..hookspecs import hookimpl
from ..patching import Patch, PatchSet, Target, Verdict, applicable, around, not_needed, unsupported
from ..verl_fixes import hooks as verl_fixes
from . import class_hooks, overlap_hooks
from .clipping import hooks as clipping
from .fused import hooks as fused
from .step import hooks as step

GPT_MODEL: Final = "megatron.core.models.gpt.gpt_model"
MTP: Final = "megatron.core.transformer.multi_token_prediction"

#: What the composition needs to hand to ``GPTModel._postprocess``; everything else passes through untouched.
NEEDED: Final = frozenset({"hidden_states", "labels", "loss_mask", "mtp_in_postprocess"})


def _decide_postprocess(environment: Environment, module: ModuleType) -> Verdict:
    missing = ", ".join(sorted(NEEDED - set(signature(module.GPTModel._postprocess).parameters)))
    if missing:
        return unsupported(
            found=f"{environment.label('megatron-core')} whose GPTModel._postprocess takes no {missing}",
            expected="the parameters that megatron-core 0.15 to 0.19 have",
            advice="update verl-mtp-plugin, or set VERL_MTP_PLUGIN=off",
        )
    return applicable()


def _build_postprocess(original: Any) -> Any:
    from .postprocess import build

    return build(original)


def _build_get_embeddings(original: Any) -> Any:
    from .request import RequestSlot

    return RequestSlot("_get_embeddings", original, original)


def _build_checkpointed_forward(original: Any) -> Any:
    from .recompute import build

    return build(original)


def _gate(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    from ..job.gate import enter_training
    from .overlap import refuse_overlap
    from .request import verify

    enter_training()
    refuse_overlap(model)
    result = original(model, *args, **kwargs)
    verify(model)
    return result


POSTPROCESS: Final = PatchSet(
    "training.postprocess",
    (
        Patch(
            id="training.postprocess.gpt_model",
            target=Target(GPT_MODEL, "GPTModel._postprocess"),
            reason="log-prob recompute crashes (megatron-core 0.15, 0.16) or pays for MTP layers, and MTP training "
            "fails or leaks into lm_head, depending on the pair of verl and megatron-core",
            upstream="verl #4936, #5323, #6432, #6464; needed while verl replaces _postprocess by a copied body",
            critical=True,
            decide=_decide_postprocess,
            build=_build_postprocess,
        ),
        Patch(
            id="training.postprocess.mtp_layer",
            target=Target(MTP, "MultiTokenPredictionLayer._get_embeddings"),
            reason="detach_encoder raises a TypeError on megatron-core >= 0.18 under verl <= 0.8",
            upstream="megatron-core's own config.mtp_detach_heads (0.19) does the same for the trunk",
            critical=True,
            build=_build_get_embeddings,
        ),
    ),
)

RECOMPUTE: Final = Patch(
    id="training.recompute",
    target=Target(MTP, "MultiTokenPredictionLayer._checkpointed_forward"),
    reason="full activation recompute with MTP raises a TypeError on megatron-core 0.18, on 0.19 under verl 0.8, and "
    "with packed sequences on 0.16 and 0.17 where verl has not replaced the method",
    upstream="verl #6432; delete when the oldest supported megatron-core is 0.19 and verl patches no instance",
    build=_build_checkpointed_forward,
)


def _lacks_warnings(environment: Environment, module: ModuleType) -> Verdict:
    return not_needed("the module imports warnings") if hasattr(module, "warnings") else applicable()


RECOMPUTE_BLOCK: Final = Patch(
    id="training.recompute_block",
    target=Target(MTP, "warnings"),
    reason="activation recompute by blocks with MTP raises a NameError on megatron-core 0.15: the module says that it "
    "does not recompute MTP layers then, and has not imported warnings",
    upstream="mended in megatron-core 0.16; delete when that is the oldest supported one",
    decide=_lacks_warnings,
    build=lambda original: warnings,
    creates=True,
)

#: What :func:`packed_roll.roll` takes in place of.
ROLL_PARAMETERS: Final = ("tensor", "shifts", "dims", "packed_seq_params", "cp_group")


def _decide_packed_roll(environment: Environment, module: ModuleType) -> Verdict:
    found = tuple(signature(module._roll_tensor_packed_seq).parameters)
    if found != ROLL_PARAMETERS:
        return not_needed(f"_roll_tensor_packed_seq takes {', '.join(found)}: megatron-core's own is slower, and right")
    return applicable()


def _packed_roll(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .packed_roll import roll  # imports torch

    return roll(*args, **kwargs)


PACKED_ROLL: Final = Patch(
    id="training.packed_roll",
    target=Target(MTP, "_roll_tensor_packed_seq"),
    reason="MTP on packed sequences waits for the GPU several times for each sequence, tensor and depth, and with "
    "context parallelism sends two messages each time",
    upstream="a faster roll in megatron-core, which calls its own naive",
    absent_ok=True,  # megatron-core 0.15 has no packed sequences with MTP
    decide=_decide_packed_roll,
    build=around(_packed_roll),
)

GATE: Final = Patch(
    id="training.gate",
    target=Target("verl.models.mcore.mtp_patch", "patch_postprocess"),
    reason="MTP would be trained although a patch it must not run without is missing, or nodes differ, or the model "
    "is one that verl passes over with a printed line",
    upstream="plugin code; nothing upstream replaces it",
    build=around(_gate),
)


@hookimpl
def verl_mtp_patches(environment: Environment) -> Iterable[Patch | PatchSet]:
    """The built-in training patches."""
    return (
        POSTPROCESS,
        RECOMPUTE,
        RECOMPUTE_BLOCK,
        PACKED_ROLL,
        GATE,
        *step.PATCHES,
        *clipping.PATCHES,
        *class_hooks.PATCHES,
        *fused.PATCHES,
        *overlap_hooks.PATCHES,
        *verl_fixes.PATCHES,
    )
