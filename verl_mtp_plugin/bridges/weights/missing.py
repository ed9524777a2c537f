"""MTP weights that a Hugging Face checkpoint lacks: an error, or a new head on purpose; the same on every rank."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from ... import runtime
from ...errors import MissingWeightsError
from ...settings import MISSING_WEIGHTS, MODE_KEY, OPTION_VARIABLES
from .agreement import everywhere, rank, together
from .weight_names import Plan, chunks, listed

logger = logging.getLogger("verl_mtp_plugin")

_RANDOM: Final = MISSING_WEIGHTS[1]
#: How to start a new MTP head, for messages.
ON_PURPOSE: Final = (
    f"set +{MODE_KEY}.missing_weights={_RANDOM} (or {OPTION_VARIABLES['missing_weights']}={_RANDOM}): it starts "
    "from Megatron's initialization"
)


def settle(plan: Callable[[], Plan], present: Callable[[], Iterable[str]], models: Any, folder: Any) -> frozenset[str]:
    """Compare what MTP parameters need with what a folder has. A collective.

    Args:
        plan: what the parameters of this rank need; asked second.
        present: the names of the folder's tensors.
        models: the model chunks of this rank.

    Returns:
        The tensors that are missing on purpose, the same on all ranks.

    Raises:
        MissingWeightsError: some are missing, and not on purpose, or not on all ranks, or of parameters that Megatron
            has not initialized; or the bridge has no name for a parameter.
    """
    names = together(lambda: frozenset(present()))
    mine = together(plan)
    nameless = everywhere(lambda: mine.unmapped)
    if nameless:
        raise MissingWeightsError(
            found=f"MTP parameters that the bridge would not load: {listed(nameless)}",
            expected="a Hugging Face tensor for each",
            advice="Use a bridge that supports this model's MTP (`verl-mtp models` shows which do), or set "
            "actor_rollout_ref.model.mtp.enable=False.",
        )
    absent_here = mine.absent(names)
    absent = everywhere(lambda: absent_here)
    if not absent:
        return absent
    uneven = everywhere(lambda: (absent - absent_here) & mine.wanted)
    if uneven:
        raise MissingWeightsError(
            found=f"{folder} with tensors of the MTP layers on some ranks and not on others: {listed(uneven)}",
            expected="the same checkpoint on all nodes",
            advice="Complete the copies, or use a folder that all nodes share.",
        )
    if runtime.settings().missing_weights != _RANDOM:
        raise MissingWeightsError(
            found=f"{folder} without tensors of the MTP layers: {listed(absent)}",
            expected="all tensors of the MTP layers that the model has",
            advice=f"Start from a checkpoint that has its MTP head. To train a new one, {ON_PURPOSE}.",
        )
    if any(map(_uninitialized, chunks(models))):  # by the config, which all ranks share
        raise MissingWeightsError(
            found=f"{folder} without tensors of the MTP layers, and a model built with perform_initialization=False: "
            f"{listed(absent)}",
            expected="parameters that Megatron has initialized, since missing_weights=random",
            advice="Drop perform_initialization from override_transformer_config.",
        )
    if rank() == 0:
        logger.warning(
            "%s has no %d tensors of the MTP layers. missing_weights=random: they keep Megatron's initialization: %s",
            folder,
            len(absent),
            ", ".join(sorted(absent)),
        )
    return absent


def _uninitialized(chunk: Any) -> bool:
    configs = (getattr(module, "config", None) for module in chunk.modules())
    return any(getattr(config, "perform_initialization", True) is False for config in configs)
