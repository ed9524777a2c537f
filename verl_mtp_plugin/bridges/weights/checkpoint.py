"""verl's checkpoints: one without the MTP layers is refused by name, before anything of it is loaded."""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import Any

from .resuming import check_before_optimizer, check_dist_checkpoint
from .weight_names import chunks, has_mtp

#: Whether a model with MTP layers, on this stage or another, is being loaded: on all ranks or on none.
_with_mtp: ContextVar[bool] = ContextVar("verl_mtp_loading_a_model_with_mtp", default=False)


def load_checkpoint(original: Any, manager: Any, local_path: Any, *args: Any, **kwargs: Any) -> Any:
    """verl's ``MegatronCheckpointManager.load_checkpoint``, which calls :func:`load_dist_checkpointing`.

    Raises:
        MissingWeightsError: the checkpoint lacks MTP tensors.
    """
    with_mtp = has_mtp(manager.model)
    if with_mtp and local_path is not None:
        check_before_optimizer(manager, Path(local_path))
    token = _with_mtp.set(with_mtp)
    try:
        return original(manager, local_path, *args, **kwargs)
    finally:
        _with_mtp.reset(token)


def load_dist_checkpointing(original: Any, sharded_state_dict: Any, ckpt_dir: Any, *args: Any, **kwargs: Any) -> Any:
    """The checkpoint manager's ``load_dist_checkpointing``.

    Raises:
        MissingWeightsError: the checkpoint lacks MTP tensors that are to be loaded, weights or optimizer states.
    """
    if _with_mtp.get():
        check_dist_checkpoint(sharded_state_dict, ckpt_dir)
    return original(sharded_state_dict, ckpt_dir, *args, **kwargs)


def load_mcore_dist_weights(
    original: Any, parallel_model: Any, dist_weight_path: Any, *args: Any, **kwargs: Any
) -> Any:
    """verl's ``load_mcore_dist_weights``: a model's first weights from a distributed checkpoint.

    Raises:
        MissingWeightsError: the checkpoint lacks MTP tensors.
    """
    if has_mtp(parallel_model):
        from megatron.core.utils import unwrap_model

        models = unwrap_model(chunks(parallel_model))
        check_dist_checkpoint([model.sharded_state_dict() for model in models], dist_weight_path)
    return original(parallel_model, dist_weight_path, *args, **kwargs)
