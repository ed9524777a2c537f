"""The MTP loss: run the MTP block, and attach a cross entropy per depth to the main hidden states."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from typing import Any

import torch

from ..environment import installed_version
from ..errors import UnsupportedError

#: Where verl >= 0.9 leaves the ratio of routed to loss tokens, on the packed sequence parameters (verl #6464).
_NORMALIZATION_ATTRIBUTE = "_verl_mtp_loss_normalization_factor"


@lru_cache(maxsize=16)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(signature(function).parameters)


def _upstream() -> Any:
    from megatron.core.transformer import multi_token_prediction

    return multi_token_prediction


def check_supported(model: Any, call: dict[str, Any]) -> None:
    """Refuse what this megatron-core cannot train, before anything runs.

    Raises:
        UnsupportedError: packed sequences that cannot be rolled, or MTP on a pipeline stage of its own.
    """
    installed = f"megatron-core {installed_version('megatron-core') or '(unknown version)'}"
    if call.get("packed_seq_params") is not None and "packed_seq_params" not in _parameters(_upstream().roll_tensor):
        raise UnsupportedError(
            found=f"packed sequences with MTP training on {installed}",
            expected="megatron-core >= 0.16, whose MTP keeps packed sequences apart",
            advice="Upgrade megatron-core, or set actor_rollout_ref.model.use_remove_padding=False.",
        )
    if model.post_process != bool(call.get("mtp_in_postprocess")):
        raise UnsupportedError(
            found="MTP training with the MTP layers on a pipeline stage other than the last",
            expected="the MTP layers on the last pipeline stage, where the labels arrive",
            advice="Give MTP no stage of its own in pipeline_model_parallel_layout.",
        )


def mtp_hidden_states(model: Any, call: dict[str, Any], *, detach_encoder: bool) -> list[torch.Tensor]:
    """Run the MTP block on the trunk's hidden states.

    Args:
        model: the ``GPTModel``.
        call: the arguments of its ``_postprocess``; ``hidden_states`` is [s, b, h].
        detach_encoder: cut the graph at the entrance of the block, to the trunk and to the embedding. Later depths
            still train earlier ones, as in the chain of DeepSeek-V3 and with megatron-core's ``mtp_detach_heads``.

    Returns:
        One tensor [s, b, h] per depth.
    """
    hidden_states, embedding = call["hidden_states"], model.embedding
    if detach_encoder:
        # A leaf that requires a gradient: activation recompute runs backward only if some input asks for one.
        hidden_states = hidden_states.detach().requires_grad_()
        embedding = _detached(model.embedding)
    offered = {**call, "hidden_states": hidden_states, "embedding": embedding, **(call.get("extra_block_kwargs") or {})}
    # labels and loss_mask are _postprocess's; some blocks have parameters of these names with another meaning.
    accepted = _parameters(type(model.mtp).forward) - {"self", "labels", "loss_mask"}
    output = model.mtp(**{name: value for name, value in offered.items() if name in accepted})
    return list(torch.chunk(output, 1 + model.config.mtp_num_layers, dim=0)[1:])


def _detached(embedding: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def embed(*args: Any, **kwargs: Any) -> torch.Tensor:
        return embedding(*args, **kwargs).detach()

    return embed


def attach_mtp_loss(
    model: Any, hidden_states: torch.Tensor, depths: list[torch.Tensor], call: dict[str, Any]
) -> torch.Tensor:
    """Attach the MTP loss of every depth to the graph behind ``hidden_states``.

    Depth d at position t predicts token t + 1 + d: labels and mask are rolled by one position per depth. The head
    (lm_head, or the tied embedding through it) gets no gradient.

    Args:
        model: the ``GPTModel``.
        hidden_states: the trunk's, [s, b, h]; returned with the same values.
        depths: the MTP block's hidden states, [s, b, h] per depth.
        call: the arguments of ``_postprocess``: ``labels`` and ``loss_mask`` [b, s] (mask None: all ones).

    Returns:
        The main hidden states, [s, b, h]; their backward pass also runs the MTP loss's.
    """
    mtp = _upstream()
    config, labels, mask = model.config, call["labels"], call.get("loss_mask")
    if mask is None:
        mask = torch.ones_like(labels, dtype=torch.float32)
    weight = model.shared_embedding_or_output_weight() if _tied(model) else model.output_layer.weight
    main_tokens = mask.sum()
    for depth, states in enumerate(depths):
        labels, _ = _roll(mtp, labels, model, call)
        mask, tokens = _roll(mtp, mask, model, call)
        logits = _head_logits(model, states, weight.detach(), call)
        token_loss = mask * model.compute_language_model_loss(labels, logits)  # [b, s]
        tokens = tokens.clamp(min=1)  # a micro-batch may hold no trained token at all
        if model.training:
            _track(mtp, model, depth, token_loss.detach().sum() / tokens, logits.detach(), labels, mask, call)
        loss = token_loss * (config.mtp_loss_scaling_factor / config.mtp_num_layers) / tokens
        if config.calculate_per_token_loss:
            # Megatron divides all gradients by the main loss's tokens at the end.
            loss = loss * main_tokens * _normalization(call)
        hidden_states = mtp.MTPLossAutoScaler.apply(hidden_states, loss)
    return hidden_states


def _tied(model: Any) -> bool:
    return bool(model.share_embeddings_and_output_weights)


def _normalization(call: dict[str, Any]) -> float:
    factor = getattr(call.get("packed_seq_params"), _NORMALIZATION_ATTRIBUTE, None)
    return 1.0 if factor is None else float(factor)


def _context_parallel_group(model: Any, call: dict[str, Any]) -> Any:
    for holder, name in ((call.get("packed_seq_params"), "cp_group"), (model, "cp_group")):
        group = getattr(holder, name, None)
        if group is not None:
            return group
    return getattr(getattr(model, "pg_collection", None), "cp", None)


def _roll(mtp: Any, tensor: torch.Tensor, model: Any, call: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """``tensor`` [b, s] one position to the left, across context-parallel ranks, and the sum of what is left."""
    arguments: dict[str, Any] = {"shifts": -1, "dims": -1, "cp_group": _context_parallel_group(model, call)}
    if "packed_seq_params" in _parameters(mtp.roll_tensor):
        arguments["packed_seq_params"] = call.get("packed_seq_params")
    rolled: tuple[torch.Tensor, torch.Tensor] = mtp.roll_tensor(tensor, **arguments)
    return rolled


def _head_logits(model: Any, states: torch.Tensor, weight: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    """Logits [s, b, v / tp] of ``states`` [s, b, h] through the frozen head, scaled as upstream scales its own."""
    logits, _ = model.output_layer(states, weight=weight, runtime_gather_output=call.get("runtime_gather_output"))
    scale = getattr(model, "_scale_logits", None)
    scaled: torch.Tensor = logits if scale is None else scale(logits)
    return scaled


def _track(
    mtp: Any,
    model: Any,
    depth: int,
    mean_loss: torch.Tensor,
    logits: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor,
    call: dict[str, Any],
) -> None:
    """Leave the depth's loss where verl reads it: ``MTPLossLoggingHelper``."""
    from megatron.core import parallel_state

    helper, depths = mtp.MTPLossLoggingHelper, model.config.mtp_num_layers
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if hasattr(helper, "save_metrics_to_tracker"):
        correct, total = mtp._compute_mtp_acceptance_counts(
            logits,
            labels,
            mask,
            model.output_layer,
            call.get("runtime_gather_output"),
            getattr(model, "tp_group", None),
        )
        helper.save_metrics_to_tracker(mean_loss, correct, total, depth, depths, avg_group=group)
    else:
        helper.save_loss_to_tracker(mean_loss, depth, depths, avg_group=group)
