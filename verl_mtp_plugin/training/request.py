"""verl asks for MTP training by putting functions on model instances. Here they are read as requests.

verl's ``patch_postprocess(model)`` and ``patch_mtp_layer_get_embeddings(model)`` set instance attributes whose bodies
fit one megatron-core release. A :class:`RequestSlot` on the class is a data descriptor, and so wins over them: the
attribute stays where verl put it, says what is wanted, and does not run. Whether verl patched once, twice, or before
this plugin was activated makes no difference, and verl's ``unpatch_*`` withdraws the request.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import getattr_static
from types import MethodType
from typing import Any, Final

from ..errors import UnsupportedError

VERL_PATCHES: Final = "verl.models.mcore.mtp_patch"


class RequestSlot:
    """Stands for a method on its class, and keeps what verl sets on instances as a request.

    Args:
        name: the method's name.
        original: the method as it was.
        function: what runs in its place.
    """

    def __init__(self, name: str, original: Callable[..., Any], function: Callable[..., Any]) -> None:
        self.name = name
        self.original = original
        self.function = function
        self.__wrapped__ = original

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self.function
        own = vars(instance).get(self.name)
        if own is None or is_request(own) or getattr(own, "__func__", None) is self.original:
            return MethodType(self.function, instance)
        return own  # somebody else's patch on this instance stays in force

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self.name] = value

    def __delete__(self, instance: Any) -> None:
        if self.name not in vars(instance):
            raise AttributeError(self.name)
        del vars(instance)[self.name]


def is_request(value: Any) -> bool:
    """Whether an instance attribute was put there by verl (or :func:`request`) to ask for MTP."""
    return getattr(value, "__module__", None) in (VERL_PATCHES, __name__)


def _requested(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a request is read, not called")


def request(model: Any, *, detach_encoder: bool = False) -> None:
    """Ask for MTP training on ``model`` (a ``GPTModel``) without verl, as verl's patch functions do."""
    model._postprocess = MethodType(_requested, model)
    if detach_encoder:
        for layer in model.mtp.layers:
            layer._get_embeddings = MethodType(_requested, layer)


def wants_training(model: Any) -> bool:
    """Whether MTP training was asked for on this ``GPTModel``: labels then give logits and an attached MTP loss."""
    return is_request(vars(model).get("_postprocess"))


def wants_detached_encoder(model: Any) -> bool:
    """Whether the MTP loss must leave trunk and embedding alone."""
    return any(is_request(vars(layer).get("_get_embeddings")) for layer in model.mtp.layers)


def verify(model: Any) -> None:
    """Check that a request which verl has just made is one that will be served.

    Args:
        model: what verl built, wrapped or not (DDP, Float16Module, a vision-language model around a ``GPTModel``).

    Raises:
        UnsupportedError: no ``GPTModel`` in it took the request, its class brings its own ``_postprocess``, or MTP lies
            on a pipeline stage that gets no labels.
    """
    asked = [module for module in model.modules() if is_request(vars(module).get("_postprocess"))]
    if not asked:
        raise UnsupportedError(
            found=f"a {type(model).__name__} in which verl found no GPTModel to train MTP on",
            expected="a GPTModel, a HybridModel, or a class that is registered as a ModelClass",
            advice="Register its class (verl_mtp_plugin.hookspecs), or set actor_rollout_ref.model.mtp.enable=False.",
        )
    for module in asked:
        if not isinstance(getattr_static(type(module), "_postprocess", None), RequestSlot):
            raise UnsupportedError(
                found=f"{type(module).__module__}.{type(module).__name__} with a _postprocess of its own",
                expected="GPTModel._postprocess, which this plugin patches",
                advice="Register it as a ModelClass (verl_mtp_plugin.hookspecs), or set VERL_MTP_PLUGIN=off.",
            )
        apart = getattr(module, "mtp_process", False) and not module.post_process
        if apart or getattr(module.config, "mtp_standalone", False):  # the latter is known to every stage
            raise mtp_apart_from_labels()


def mtp_apart_from_labels() -> UnsupportedError:
    """The error for MTP layers on a pipeline stage of their own."""
    return UnsupportedError(
        found="MTP training with the MTP layers on a pipeline stage other than the last",
        expected="the MTP layers on the last pipeline stage, where the labels arrive",
        advice="Give MTP no stage of its own in pipeline_model_parallel_layout.",
    )
