"""The MTP block's gradient norm on its own, and, where that is asked for, its clipping on its own.

Megatron computes one norm over all parameters and clips all of them by it, so that an MTP head with large gradients
shrinks the policy's update. None of that arithmetic is repeated here. Megatron leaves a parameter without a gradient
out of the norm, of the clipping and of the count of zeros; so with the policy's gradients out of sight its
``get_grad_norm`` is the norm of MTP, through the same collectives, and with MTP's out of sight its step is that of a
model without MTP. They are back before the update.

megatron-core 0.19 can clip MTP apart itself, but only with ``config.mtp_detach_heads``, by ``clip_grad`` alone, and
knowing the norm only when it clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from ...errors import UnsupportedError
from .stepped import origins, parts, sort

#: Where a parameter's gradient lies when the optimizer steps; ``decoupled_grad`` with the precision-aware optimizer.
GRADIENTS: Final = ("grad", "decoupled_grad")
#: megatron-core 0.19 leaves parameters with this attribute out of its main norm (``config.mtp_detach_heads``).
TAG: Final = "grad_norm_group"


@dataclass(frozen=True, slots=True)
class Clipping:
    """How the gradients of a model's MTP block are clipped.

    Args:
        apart: on their own; False leaves it to Megatron, which clips everything by one norm.
        max_norm: their largest norm, None for the optimizer's ``clip_grad``; no clipping if it is 0.
    """

    apart: bool
    max_norm: float | None


_models: WeakKeyDictionary[Any, Clipping] = WeakKeyDictionary()  # by GPTModel, the latest last
_norms: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # by optimizer; a float or a tensor of one element


def track(model: Any, *, apart: bool, max_norm: float | None = None) -> None:
    """Measure the MTP gradient norm at every step of the optimizer that trains ``model``, and clip as told.

    Call it on every rank, with the same settings, also where a pipeline stage has no MTP: measuring is a collective.
    It does not matter whether the optimizer is there already. A later call replaces an earlier one.

    Args:
        model: the ``GPTModel``, unwrapped.
        apart: see :class:`Clipping`.
        max_norm: see :class:`Clipping`.
    """
    _models.pop(model, None)
    _models[model] = Clipping(apart, max_norm)


def last_grad_norm(optimizer: Any) -> float | None:
    """The L2 norm of the MTP gradients, before clipping, at the latest step of this optimizer; the same on all ranks.

    None if it trains no tracked model, has made no step, skipped one for an overflow, or is of a kind whose parameters
    cannot be told apart (Megatron-FSDP).
    """
    norm = _norms.get(optimizer)
    return None if norm is None else float(norm)


def step(original: Callable[..., Any], optimizer: Any, *args: Any, **kwargs: Any) -> Any:
    """An optimizer's ``step``: upstream's, between whose first part and last part MTP is measured and clipped.

    Raises:
        UnsupportedError: clipping apart was asked for, and this optimizer's parameters cannot be told apart.
    """
    models = _trained_by(optimizer)
    if not models:
        return original(optimizer, *args, **kwargs)
    clipping = _models[models[-1]]
    prepare_grads, step_with_ready_grads = optimizer.prepare_grads, optimizer.step_with_ready_grads
    with ExitStack() as hidden:

        def prepare() -> Any:
            overflow = prepare_grads()
            if not overflow:
                mtp = _measure(optimizer, models, clipping)
                if clipping.apart:
                    _clip(mtp, clipping, optimizer)
                    hidden.enter_context(_gradients_hidden(mtp))
            return overflow

        def update() -> Any:
            hidden.close()
            return step_with_ready_grads()

        _norms.pop(optimizer, None)
        with _attributes(optimizer, prepare_grads=prepare, step_with_ready_grads=update):
            return original(optimizer, *args, **kwargs)


def _measure(optimizer: Any, models: list[Any], clipping: Clipping) -> list[Any]:
    """Note the norm of the MTP gradients; the parameters, as the optimizer has them, that they belong to."""
    mtp, policy, unknown = sort(optimizer, models)
    if unknown and clipping.apart:
        raise UnsupportedError(
            found=f"an optimizer ({type(optimizer).__name__}) whose parameters cannot be traced to the model's",
            expected="Megatron's distributed, mixed-precision or fp32 optimizer, or a chain of them",
            advice="Set actor_rollout_ref.model.mtp.plugin.clip_grad=joint, or do not use Megatron-FSDP.",
        )
    with _gradients_hidden([*policy, *unknown]), _untagged(mtp):
        norm = optimizer.get_grad_norm()
    if not unknown:
        _norms[optimizer] = norm
    return mtp


def _clip(mtp: list[Any], clipping: Clipping, optimizer: Any) -> None:
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

    limit = optimizer.config.clip_grad if clipping.max_norm is None else clipping.max_norm
    for decoupled in (False, True) if limit > 0 else ():
        chosen = [p for p in mtp if (getattr(p, "decoupled_grad", None) is not None) is decoupled]
        if chosen:
            clip_grad_by_total_norm_fp32(chosen, limit, _norms[optimizer], use_decoupled_grad=decoupled)


def _trained_by(optimizer: Any) -> list[Any]:
    """The tracked models that this optimizer trains. All ranks must find the same, or one waits for ever."""
    if not _models:
        return []
    chunks = getattr(optimizer, "model_chunks", ())
    known = {origin for part in parts(optimizer) for origin in origins(part).values()}
    known |= {id(parameter) for part in parts(optimizer) for parameter in part.get_parameters()}

    def trained(model: Any) -> bool:
        if any(module is model for chunk in chunks for module in chunk.modules()):
            return True
        return any(id(parameter) in known for parameter in model.parameters())

    # A stage with nothing to train has an empty optimizer, which nothing connects with the model.
    return [model for model in _models if trained(model) or not (chunks or known)]


@contextmanager
def _gradients_hidden(parameters: Iterable[Any]) -> Iterator[None]:
    gradients = [(p, name, getattr(p, name, None)) for p in parameters for name in GRADIENTS]
    gradients = [entry for entry in gradients if entry[2] is not None]
    for parameter, name, _ in gradients:
        setattr(parameter, name, None)
    try:
        yield
    finally:
        for parameter, name, gradient in gradients:
            setattr(parameter, name, gradient)


@contextmanager
def _untagged(parameters: Iterable[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for parameter in parameters:
            if getattr(parameter, TAG, None) is not None:
                stack.enter_context(_attributes(parameter, **{TAG: None}))
        yield


@contextmanager
def _attributes(instance: Any, **values: Any) -> Iterator[None]:
    """Attributes of this one object, for a while."""
    state = vars(instance)
    saved = {name: state[name] for name in values if name in state}
    state.update(values)
    try:
        yield
    finally:
        for name in values:
            del state[name]
        state.update(saved)
