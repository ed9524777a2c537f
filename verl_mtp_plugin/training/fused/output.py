"""Log-probs straight from a model's last hidden states, while its MTP layers train: the model's side.

verl's own fused output processor takes the place of the vocabulary projection (megatron-core >= 0.18), and the logits
of all tokens never exist. Batches that ask for what only logits can give (sum of squared probabilities, distillation, a
temperature per sample) take the plain path, as they do without the kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, Final

import torch

#: On a ``GPTModel`` whose engine keeps the fused kernels although it trains MTP.
MARK: Final = "_verl_mtp_fused"
#: Arguments of verl's logits processor which say that a batch needs the logits themselves.
NEEDS_LOGITS: Final = ("calculate_sum_pi_squared", "distillation_use_topk", "distillation_only")


@functools.lru_cache(maxsize=4)
def with_fused_output(forward: Callable[..., Any]) -> Callable[..., Any]:
    """verl's plain forward function (``gptmodel_forward_model_engine``), fused at the model's output where it can be.

    Args:
        forward: ``forward(model, input_ids, ..., logits_processor, logits_processor_args, mtp_enable_train, ...)``.

    Returns:
        The same function for models without :data:`MARK`. For others its result has the same keys and shapes:
        ``log_probs`` and, if asked for, ``entropy``.
    """
    parameters = signature(forward)

    @functools.wraps(forward)
    def fused_forward(*args: Any, **kwargs: Any) -> Any:
        bound = parameters.bind(*args, **kwargs)
        bound.apply_defaults()
        call = bound.arguments
        model = unwrap(call["model"])
        if not getattr(model, MARK, False) or not model.post_process:
            return forward(*args, **kwargs)
        flags = getattr(call["logits_processor"], "keywords", None)
        temperature = _uniform((call["logits_processor_args"] or {}).get("temperature"))
        if flags is None or temperature is None or any(flags.get(name, False) for name in NEEDS_LOGITS):
            return forward(*args, **kwargs)
        trains = call["mtp_enable_train"]
        # verl hands labels to the model for MTP alone, and the kernel needs them always.
        call["mtp_enable_train"] = True
        call["logits_processor"] = functools.partial(_from_output, with_entropy=flags.get("calculate_entropy", False))
        with _output_processor(model, temperature, keep_labels=trains):
            return forward(*bound.args, **bound.kwargs)

    return fused_forward


@contextmanager
def _output_processor(model: Any, temperature: float, *, keep_labels: bool) -> Iterator[None]:
    """Within it ``model`` (a ``GPTModel``) returns log-probs and entropy, through verl's fused output processor.

    A hook on the ``GPTModel`` itself reaches it inside its wrappers (DDP, Float16Module).
    """
    from verl.models.mcore.model_forward_fused import FusedOutputProcessorContext, fused_output_processor

    def add_processor(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        labels = kwargs["labels"]
        if not keep_labels:
            kwargs = {**kwargs, "labels": None, "loss_mask": None}

        def process(**given: Any) -> Any:
            return fused_output_processor(**{**given, "labels": labels})

        context = FusedOutputProcessorContext(temperature=temperature)
        return args, {**kwargs, "output_processor": process, "output_processor_context": context}

    handle = model.register_forward_pre_hook(add_processor, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _from_output(output: Any, label: torch.Tensor, *, with_entropy: bool, **_unused: Any) -> dict[str, torch.Tensor]:
    """What verl's logits processor returns, from what the output processor has computed; [1, tokens / cp] each."""
    found = {"log_probs": output.log_probs.view(label.shape)}
    if with_entropy:
        found["entropy"] = output.entropy.view(label.shape)
    return found


def _uniform(temperature: torch.Tensor | None) -> float | None:
    """The one temperature of a (nested) tensor, or None: the kernel takes a number."""
    if temperature is None:
        return None
    values = temperature.values() if temperature.is_nested else temperature
    if not values.numel():
        return None
    low, high = (float(value) for value in torch.aminmax(values))
    return max(low, 1e-8) if low == high else None


def unwrap(model: Any) -> Any:
    """The ``GPTModel`` inside verl's wrappers."""
    from verl.utils.megatron_utils import unwrap_model

    return unwrap_model(model)
