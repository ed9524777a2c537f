"""Deliberate faults: each must be noticed in the layouts that are there for it.

Most are put into Megatron's own functions, where several processes communicate; :mod:`tests.contract.faults` has more.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable
from typing import Any

from .. import faults as single

#: By fault: the checks, as layout/check, that must fail.
MUST_TRIP = {
    "context_ignored": ("context/gradients", "context_packed/gradients", "context/soft_objective"),
    "roll_crosses_sequences": ("sequence_packed/gradients", "context_packed/step_tokens"),
    "norms_not_summed": ("sequence/gradients_detached",),
    "embeddings_not_summed": ("pipeline/gradients", "pipeline/gradients_tied"),
    "padding_mask_dropped": ("expert/gradients",),
    "tokens_not_counted": ("data/step_tokens", "context/step_tokens"),
    "loss_one_percent_larger": ("tensor/gradients", "pipeline/microbatches"),
    "head_trained": ("tensor/head_isolated", "pipeline/detach_isolates_tied"),
    "embedding_trained": ("sequence/detach_isolates",),
    "mtp_always_runs": ("context/labels_none", "tensor/no_grad"),
}


def fault(name: str) -> contextlib.AbstractContextManager[None]:
    """The context in which the named fault is in place."""
    if name in single.MUST_TRIP:
        return single.fault(name)
    mtp, finalize, normalization = (
        importlib.import_module(module)
        for module in (
            "megatron.core.transformer.multi_token_prediction",
            "megatron.core.distributed.finalize_model_grads",
            "verl_mtp_plugin.training.step.normalization",
        )
    )

    def without_groups(roll: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(roll)  # whether a release takes packed sequences is read from the signature
        def run(*args: Any, cp_group: Any = None, packed_seq_params: Any = None, **kwargs: Any) -> Any:
            return roll(*args, **kwargs)

        return run

    def nothing(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: None

    faults: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
        "context_ignored": (mtp, "roll_tensor", without_groups),
        "norms_not_summed": (finalize, "_allreduce_non_tensor_model_parallel_grads", nothing),
        "embeddings_not_summed": (finalize, "_allreduce_word_embedding_grads", nothing),
        "tokens_not_counted": (normalization, "current", nothing),
    }
    return single.replaced(*faults[name])
