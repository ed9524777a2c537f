"""``GPTModel._postprocess`` with MTP, composed from upstream's own parts.

megatron-core's ``_postprocess`` runs the MTP layers, attaches their loss and computes the logits in one body that
changes with every release, and verl copies that body. Here nothing is copied: :mod:`.mtp_block` runs the MTP block,
:mod:`.mtp_loss` attaches its loss, and everything else is upstream's method, called with MTP hidden from it.

MTP as in DeepSeek-V3 (arXiv:2412.19437, section 2.2).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch

from .mtp_block import check_supported, mtp_hidden_states
from .mtp_loss import attach_mtp_loss
from .request import RequestSlot, wants_detached_encoder, wants_training


def build(original: Callable[..., Any]) -> RequestSlot:
    """The replacement for ``GPTModel._postprocess``."""
    parameters = signature(original)

    @functools.wraps(original)
    def postprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = parameters.bind(self, *args, **kwargs).arguments
        call.pop("self")
        return _postprocess(original, self, call)

    return RequestSlot("_postprocess", original, postprocess)


def _postprocess(original: Callable[..., Any], model: Any, call: dict[str, Any]) -> Any:
    """Logits, hidden states or loss, as ``original`` gives them, with MTP where it is wanted and nowhere else.

    Args:
        original: upstream's ``GPTModel._postprocess``.
        model: the ``GPTModel``.
        call: its arguments by name: ``hidden_states`` [s, b, h], ``labels`` [b, s] or None, and so on.

    Returns:
        Logits [b, s, v] when MTP training was requested or ``labels`` is None, with the MTP loss attached to the graph
        if one is trained; what upstream returns otherwise.
    """
    if call.get("inference_context") is not None:
        return original(model, **call)  # Megatron's own speculative decoding needs its MTP
    labels = call.get("labels")
    wanted = wants_training(model)
    if labels is not None and not wanted:
        if call.get("output_processor") is not None and _has_mtp(model, call):
            return _without_mtp(original, model, call)  # verl's fused log-probs: the labels are not for a loss
        return original(model, **call)  # plain Megatron training: its loss is not ours to change
    if not _has_mtp(model, call):
        return original(model, **{**call, "labels": None})
    if labels is None or not torch.is_grad_enabled():
        # Log-prob recompute and evaluation: nothing can be trained, so no MTP layer runs and no loss is attached.
        return _without_mtp(original, model, call)
    check_supported(model, call)
    if not call.get("mtp_in_postprocess"):
        return _without_mtp(original, model, call)
    hidden_states = call["hidden_states"]
    depths = mtp_hidden_states(model, call, detach_encoder=wants_detached_encoder(model))
    hidden_states = attach_mtp_loss(model, hidden_states, depths, call)
    return _without_mtp(original, model, {**call, "hidden_states": hidden_states})


def _has_mtp(model: Any, call: dict[str, Any]) -> bool:
    # megatron-core 0.16 looks for None only: with mtp_num_layers=0 it reads the labels of an MTP that is not there.
    return bool(call.get("mtp_in_postprocess")) or model.config.mtp_num_layers is not None


def _without_mtp(original: Callable[..., Any], model: Any, call: dict[str, Any]) -> Any:
    # An output processor (megatron-core >= 0.18) needs the labels, and upstream computes no loss beside one.
    labels = call.get("labels") if call.get("output_processor") is not None else None
    with _mtp_hidden(model):
        return original(model, **{**call, "labels": labels, "mtp_in_postprocess": False})


@contextmanager
def _mtp_hidden(model: Any) -> Iterator[None]:
    """Let ``model`` look like one without MTP. Its parameters and its shared config object are not touched."""
    state = vars(model)
    hidden: dict[str, Any] = {"config": copy.copy(model.config)}
    hidden["config"].mtp_num_layers = None
    if "mtp_process" in state:
        hidden["mtp_process"] = False
    if model.share_embeddings_and_output_weights:
        # With tied weights upstream asks mtp_process where the weight lies (the embedding, also on the last stage).
        weight = model.shared_embedding_or_output_weight()
        hidden["shared_embedding_or_output_weight"] = lambda: weight
    saved = {name: state[name] for name in hidden if name in state}
    state.update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del state[name]
        state.update(saved)
