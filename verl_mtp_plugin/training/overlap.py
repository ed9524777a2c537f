"""Expert-parallel communication overlapped with compute (combined 1F1B), together with MTP: refused, early and by name.

With ``overlap_moe_expert_parallel_comm`` megatron-core asks the training loop for a schedule plan in place of a forward
pass. No verl can give one for MTP:

* verl 0.7.1's actor can make a plan, but only with fused kernels, which it turns off when MTP is enabled.
* The engine, in 0.7.1 and later, takes no ``return_schedule_plan`` at all.
* ``gptmodel_forward_1f1b_overlap`` itself gives MTP labels that may be None and are not packed as the hidden states
  are: its last node ends in an AttributeError, or in a RuntimeError over sizes.

Mending the last point would leave two that end the job at its first training step, after a whole rollout. A run without
MTP is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..errors import UnsupportedError

KEY: Final = "overlap_moe_expert_parallel_comm"
CONFIG_KEY: Final = f"actor_rollout_ref.actor.megatron.override_transformer_config.{KEY}"


def refuse_overlap(model: Any) -> None:
    """Check, before it is trained, that ``model`` does not combine MTP with overlapped expert parallelism.

    Args:
        model: what verl built, wrapped or not.

    Raises:
        UnsupportedError: its config has both.
    """
    config = _config(model)
    if getattr(config, KEY, False) and getattr(config, "mtp_num_layers", None):
        raise UnsupportedError(
            found=f"{KEY}=True in a model that trains MTP (mtp_num_layers={config.mtp_num_layers})",
            expected="MTP without overlapped expert-parallel communication: no verl makes a schedule plan for MTP",
            advice=f"Set {CONFIG_KEY}=False, or actor_rollout_ref.model.mtp.enable=False to keep the overlap.",
        )


def refuse_plan(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """``gptmodel_forward_1f1b_overlap`` for models without MTP.

    Raises:
        UnsupportedError: the model has MTP layers.
    """
    layers = getattr(_config(model), "mtp_num_layers", None)
    if layers:
        raise UnsupportedError(
            found=f"a 1F1B schedule plan asked for a model with mtp_num_layers={layers}",
            expected="a model without MTP: verl's plan gives MTP labels that are not packed as its hidden states are",
            advice=f"Set {CONFIG_KEY}=False, or actor_rollout_ref.model.mtp.enable=False to keep the overlap.",
        )
    return original(model, *args, **kwargs)


def _config(model: Any) -> Any:
    """The config of the innermost model: wrappers (DDP has a config of its own kind) are looked through."""
    while hasattr(model, "module"):
        model = model.module
    return getattr(getattr(model, "language_model", model), "config", None)
