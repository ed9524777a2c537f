"""Fused log-prob kernels (``model.use_fused_kernels=True``) together with MTP training: the engine's side.

verl turns the kernels off when MTP is enabled: its fused forward gives the model neither MTP's loss mask nor position
ids. Its plain forward does, and prepares both exactly as MTP needs them. So with MTP the plain forward runs, and only
what the model makes of its last hidden states is exchanged (:mod:`.output`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from inspect import signature
from typing import Any, Final

import torch

from . import memory
from .output import MARK, unwrap

logger = logging.getLogger("verl_mtp_plugin")

#: What megatron-core's ``GPTModel.forward`` must take.
HOOK: Final = frozenset({"output_processor", "output_processor_context"})


class _MtpNotEnabled:
    """verl's model config, in which MTP looks disabled."""

    class mtp:
        enable = False

    def __init__(self, model_config: Any) -> None:
        self._model_config = model_config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model_config, name)


def keep_fused_kernels(original: Callable[..., Any], engine: Any) -> Any:
    """``MegatronEngine._maybe_enable_fused_kernels`` that does not give up for MTP's sake where both can be had.

    Afterwards ``engine_config.use_fused_kernels`` is False, as verl leaves it: it selects the forward function, and
    with MTP that must be the plain one. The models carry :data:`MARK`.
    """
    asked = engine.engine_config.use_fused_kernels and engine.model_config.mtp.enable
    if not asked or engine.is_value_model:
        return original(engine)
    models = [unwrap(chunk) for chunk in engine.module]
    missing = _missing(models)
    if missing:
        _say_once(logging.WARNING, memory.message(missing, models[-1], engine.engine_config))
        return original(engine)
    model_config = engine.model_config
    engine.model_config = _MtpNotEnabled(model_config)
    try:
        result = original(engine)  # verl's other conditions, such as remove-padding
    finally:
        engine.model_config = model_config
    if engine.engine_config.use_fused_kernels:
        engine.engine_config.use_fused_kernels = False
        for model in models:
            setattr(model, MARK, True)
        _say_once(logging.INFO, "verl-mtp-plugin: fused log-prob kernels stay on while MTP is enabled")
    return result


def note_fused_actor(config: Any, mtp_config: Any, actor_module: Any) -> None:
    """verl 0.7.1's own actor (``MegatronPPOActor``) turns the kernels off when MTP is enabled: say what that costs."""
    if mtp_config is None or not mtp_config.get("enable", False) or not config.get("use_fused_kernels", False):
        return
    model = unwrap(actor_module[-1]) if actor_module else None
    _say_once(logging.WARNING, memory.message(memory.OLD_VERL, model, config))


def _missing(models: list[Any]) -> str:
    """What keeps fused kernels and MTP apart here; "" if nothing does."""
    from verl.models.mcore import model_forward_fused

    if not hasattr(model_forward_fused, "fused_output_processor"):
        return memory.OLD_VERL
    if any(hasattr(model, "language_model") for model in models):
        return memory.VISION
    if not all(set(signature(type(model).forward).parameters) >= HOOK for model in models):
        return memory.OLD_MEGATRON_CORE
    return ""


_said: set[str] = set()


def _say_once(level: int, message: str) -> None:
    """One line per process and job, on the first rank."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if message in _said or (distributed and torch.distributed.get_rank() != 0):
        return
    _said.add(message)
    logger.log(level, "%s", message)
