"""MTP in model classes besides ``GPTModel``: the replacements that a ``ModelClass`` asks for.

A class with a ``_postprocess`` of its own is served as ``GPTModel`` is, around its own method.

``HybridModel`` and its like run trunk, MTP and head in one body, ``forward``, and there is no ``_postprocess`` to
compose with. But MTP there hangs on one attribute, ``mtp_process``, and what the head gets is what ``self.decoder``
returned. So upstream's ``forward`` runs with ``mtp_process`` turned off, and a hook on the decoder gives it hidden
states with the MTP loss attached.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, Signature, signature
from typing import Any, Final

import torch

from . import postprocess
from .mtp_block import check_supported, mtp_hidden_states
from .mtp_loss import attach_mtp_loss
from .request import RequestSlot, wants_detached_encoder, wants_training

#: What upstream's forward hands to the trunk and not to MTP, where its own call of MTP cannot be read.
TRUNK_ONLY: Final = frozenset({"padding_mask", "runtime_gather_output"})
#: Keywords by which that call is known among the forward's calls.
MTP_CALL: Final = frozenset({"hidden_states", "input_ids", "embedding"})


def build_postprocess(original: Callable[..., Any]) -> RequestSlot:
    """The replacement for a class's own ``_postprocess``, which may take ``**kwargs``."""
    return RequestSlot("_postprocess", original, _by_name(original, postprocess._postprocess))


def build_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement for ``forward``; same arguments, and logits [b, s, v] where MTP was asked for."""
    return _by_name(original, _forward)


def _by_name(original: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A method as ``original``, which calls ``function(original, self, arguments)``."""
    parameters = signature(original)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(original, self, _arguments(parameters, self, *args, **kwargs))

    return method


def _arguments(parameters: Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a method by name, those in its ``**kwargs`` among them, without the first (self)."""
    call = dict(parameters.bind(*args, **kwargs).arguments)
    first, *_, last = parameters.parameters.values()
    call.pop(first.name)
    if last.kind is Parameter.VAR_KEYWORD:
        call |= call.pop(last.name, {})
    return call


def request_slot() -> RequestSlot:
    """A ``_postprocess`` for a class that has none: verl puts its request there, and nobody calls it."""

    def _postprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"{type(self).__name__} does its work in forward")

    return RequestSlot("_postprocess", _postprocess, _postprocess)


def _forward(original: Callable[..., Any], model: Any, call: dict[str, Any]) -> Any:
    if call.get("inference_context") is not None or call.get("inference_params") is not None:
        return original(model, **call)  # Megatron's own speculative decoding needs its MTP
    labels, wanted = call.get("labels"), wants_training(model)
    if labels is not None and not wanted:
        return original(model, **call)  # plain Megatron training: its loss is not ours to change
    without_labels = {**call, "labels": None}
    if not model.mtp_process:
        return original(model, **without_labels)
    # compute_mtp_loss (megatron-core >= 0.20): the caller says of one call that nothing of MTP shall run in it.
    if labels is None or not torch.is_grad_enabled() or not call.get("compute_mtp_loss", True):
        with _mtp_hidden(model):
            return original(model, **without_labels)
    check_supported(model, {**call, "mtp_in_postprocess": True})
    with _mtp_hidden(model), _loss_attached(model, call, _handed_to_mtp(original)):
        return original(model, **without_labels)


@functools.lru_cache(maxsize=8)
def _handed_to_mtp(forward: Callable[..., Any]) -> frozenset[str] | None:
    """The keywords with which upstream's ``forward`` calls its MTP block; None if its code does not show them."""
    constants = inspect.unwrap(forward).__code__.co_consts
    return next((frozenset(c) for c in constants if isinstance(c, tuple) and set(c) >= MTP_CALL), None)


@contextmanager
def _mtp_hidden(model: Any) -> Iterator[None]:
    """Let ``model`` look like one without MTP. Tied weights stay where they are, which upstream asks it for, too."""
    state = vars(model)
    if model.share_embeddings_and_output_weights:
        weight = model.shared_embedding_or_output_weight()
        state["shared_embedding_or_output_weight"] = lambda: weight
    state["mtp_process"] = False
    try:
        yield
    finally:
        state["mtp_process"] = True
        state.pop("shared_embedding_or_output_weight", None)


@contextmanager
def _loss_attached(model: Any, call: dict[str, Any], handed: frozenset[str] | None) -> Iterator[None]:
    """Within it the decoder's output [s, b, h] carries the MTP loss in its graph.

    With hyper-connections (megatron-core dev) the decoder returns a pair, whose second part [s, b, streams * h] is what
    MTP computes from.
    """
    detach_encoder = wants_detached_encoder(model)

    def attach(decoder: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        offered = {**call, "rotary_pos_emb": kwargs.get("rotary_pos_emb")}
        hidden_states = output
        if isinstance(output, tuple):
            hidden_states, offered["mhc_multistream"] = output
        known = offered.keys() - TRUNK_ONLY if handed is None else handed
        offered = {name: value for name, value in offered.items() if name in known} | {"hidden_states": hidden_states}
        depths = mtp_hidden_states(model, offered, detach_encoder=detach_encoder)
        attached = attach_mtp_loss(model, hidden_states, depths, call)
        return (attached, *output[1:]) if isinstance(output, tuple) else attached

    handle = model.decoder.register_forward_hook(attach, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
