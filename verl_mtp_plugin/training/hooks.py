"""The training patches, as data: light to import, since they are armed at ``import verl``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from inspect import signature
from types import ModuleType
from typing import Any, Final

from ..environment import Environment
from ..hookspecs import hookimpl
from ..patching import Patch, PatchSet, Target, Verdict, applicable, around, not_needed, unsupported, with_needs
from ..verl_fixes import hooks as verl_fixes
from . import class_hooks, overlap_hooks
from .clipping import hooks as clipping
from .fused import hooks as fused
from .needs import NEEDS
from .step import hooks as step

GPT_MODEL: Final = "megatron.core.models.gpt.gpt_model"
MTP: Final = "megatron.core.transformer.multi_token_prediction"

#: What the composition hands to ``GPTModel._postprocess``; everything else passes through untouched.
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


def _decide_recompute(environment: Environment, module: ModuleType) -> Verdict:
    layer = module.MultiTokenPredictionLayer
    taken = signature(layer._checkpointed_forward).parameters
    inner = signature(layer._proj_and_transformer_layer).parameters
    if {"forward_func", "padding_mask"} & taken.keys() or "padding_mask" in inner:
        return applicable()
    return unsupported(
        found=f"{environment.label('megatron-core')} whose MTP layer checkpoints a body that takes "
        f"{', '.join(inner)}, by a function that takes {', '.join(taken)}",
        expected="a padding_mask in one of them, or a function to checkpoint",
        advice="set actor_rollout_ref.actor.megatron.override_transformer_config.recompute_granularity=null",
    )


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
    decide=_decide_recompute,
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

#: What :func:`packed_roll.roll` takes; the last is new in megatron-core 0.20.
ROLL_PARAMETERS: Final = ("tensor", "shifts", "dims", "packed_seq_params", "cp_group", "return_sum")
#: What :func:`packed_roll.roll_bounded` takes.
ZIGZAG_PARAMETERS: Final = ("tensor", "shifts", "dims", "cu_seqlens", "cp_group", "fill_value")
ZIGZAG: Final = "_roll_tensor_packed_seq_zigzag_cp"


def _lost(environment: Environment, found: str) -> Verdict:
    return unsupported(
        found=f"{environment.label('megatron-core')} {found}",
        expected=f"a function that takes {', '.join(ROLL_PARAMETERS[:5])}",
        advice="nothing has to be done: megatron-core's own roll is right, and slower",
    )


def _decide_packed_roll(environment: Environment, module: ModuleType) -> Verdict:
    if "packed_seq_params" not in signature(module.roll_tensor).parameters:
        return not_needed("this megatron-core has no packed sequences with MTP")
    if hasattr(module, ZIGZAG):
        return not_needed("it rolls all sequences at once itself, and with context parallelism see the patch on that")
    function = getattr(module, "_roll_tensor_packed_seq", None)
    if function is None:
        return _lost(environment, "without _roll_tensor_packed_seq")
    taken = tuple(signature(function).parameters)
    if taken not in (ROLL_PARAMETERS, ROLL_PARAMETERS[:-1]):
        return _lost(environment, f"whose _roll_tensor_packed_seq takes {', '.join(taken)}")
    return applicable()


def _decide_zigzag(environment: Environment, module: ModuleType) -> Verdict:
    taken = tuple(signature(getattr(module, ZIGZAG)).parameters)
    if taken != ZIGZAG_PARAMETERS:
        return _lost(environment, f"whose {ZIGZAG} takes {', '.join(taken)}")
    return applicable()


def _packed_roll(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .packed_roll import roll  # imports torch

    return roll(*args, **kwargs)


def _zigzag_roll(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .packed_roll import roll_bounded  # imports torch

    return roll_bounded(*args, **kwargs)


PACKED_ROLL: Final = Patch(
    id="training.packed_roll",
    target=Target(MTP, "_roll_tensor_packed_seq"),
    reason="MTP on packed sequences waits for the GPU several times for each sequence, tensor and depth, and with "
    "context parallelism sends two messages each time",
    upstream="a faster roll in megatron-core, which calls its own naive; dev has one without context parallelism",
    creates=True,  # nothing is created: the probe is to say what it means where the target is absent
    decide=_decide_packed_roll,
    build=around(_packed_roll),
    optimization=True,
)

PACKED_ROLL_ZIGZAG: Final = Patch(
    id="training.packed_roll_zigzag",
    target=Target(MTP, ZIGZAG),
    reason="the same with context parallelism on megatron-core dev: two messages for each sequence, tensor and depth",
    upstream="a roll in megatron-core that sends one message for all sequences",
    absent_ok=True,  # in releases up to 0.20 _roll_tensor_packed_seq does it
    decide=_decide_zigzag,
    build=around(_zigzag_roll),
    optimization=True,
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
    patches = (
        POSTPROCESS,
        RECOMPUTE,
        RECOMPUTE_BLOCK,
        PACKED_ROLL,
        PACKED_ROLL_ZIGZAG,
        GATE,
        *step.PATCHES,
        *clipping.PATCHES,
        *class_hooks.PATCHES,
        *fused.PATCHES,
        *overlap_hooks.PATCHES,
        *verl_fixes.PATCHES,
    )
    return with_needs(patches, NEEDS)
