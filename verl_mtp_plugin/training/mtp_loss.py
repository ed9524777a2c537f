"""The MTP loss of a ``GPTModel``: labels and mask of every depth, :mod:`.loss`, its weight, and its metrics."""

from __future__ import annotations

from typing import Any

import torch

from .. import runtime
from .loss import Objective, Totals, chunked_loss
from .mtp_block import upstream
from .roll import roll
from .step import normalization, tally

#: Where verl >= 0.9 leaves the ratio of routed to loss tokens, on the packed sequence parameters (verl #6464).
_NORMALIZATION_ATTRIBUTE = "_verl_mtp_loss_normalization_factor"


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
    config, settings = model.config, runtime.settings()
    labels, mask = call["labels"], call.get("loss_mask")
    if mask is None:
        mask = torch.ones_like(labels, dtype=torch.float32)
    main_tokens = mask.sum()
    tied = model.share_embeddings_and_output_weights
    weight = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
    objective = Objective(settings.loss)
    policy = None if objective is Objective.CROSS_ENTROPY else _whole_sequence(model, hidden_states.detach())
    for depth, states in enumerate(depths):
        labels = _roll(labels, model, call)
        mask = _roll(mask, model, call)
        target = None
        if policy is not None:
            policy = _roll(policy, model, call)  # the policy at t + d and depth d at t predict the same token
            target = _as_states(policy, model)
        loss, totals = chunked_loss(
            states,
            weight.detach(),
            labels,
            mask,
            objective=objective,
            target_hidden=target,
            logit_scale=_logit_scale(model),
            tensor_parallel_group=_tensor_parallel_group(model),
            sequence_parallel=config.sequence_parallel,
            chunk_tokens=settings.loss_chunk_tokens,
        )
        if model.training:
            tally.add(depth, totals)
            _track(model, depth, totals)
        loss = _weighted(loss, totals, depth, main_tokens, config, call)
        hidden_states = upstream().MTPLossAutoScaler.apply(hidden_states, loss)
    return hidden_states


def _weighted(
    loss: torch.Tensor, totals: Totals, depth: int, main_tokens: torch.Tensor, config: Any, call: dict[str, Any]
) -> torch.Tensor:
    """The summed ``loss`` (0-dim) as it goes into the backward pass."""
    scale = config.mtp_loss_scaling_factor / config.mtp_num_layers
    step = normalization.current()
    if step is not None:
        weight = step.weight(depth, per_token=config.calculate_per_token_loss)
        return normalization.LossScaleOnly.apply(loss * (scale * weight), config)
    loss = loss * scale / totals.tokens.clamp(min=1)  # a micro-batch may hold no trained token at all
    if config.calculate_per_token_loss:
        # Megatron divides all gradients by the main loss's tokens at the end.
        factor = getattr(call.get("packed_seq_params"), _NORMALIZATION_ATTRIBUTE, None)
        loss = loss * main_tokens * (1.0 if factor is None else float(factor))
    return loss


def _roll(tensor: torch.Tensor, model: Any, call: dict[str, Any]) -> torch.Tensor:
    """``tensor`` [..., s] one position to the left, within each sequence and across context-parallel ranks."""
    packed, group = call.get("packed_seq_params"), _context_parallel_group(model, call)
    return roll(upstream().roll_tensor, tensor, cp_group=group, packed_seq_params=packed)


def _context_parallel_group(model: Any, call: dict[str, Any]) -> Any:
    for holder, name in ((call.get("packed_seq_params"), "cp_group"), (model, "cp_group")):
        group = getattr(holder, name, None)
        if group is not None:
            return group
    return getattr(getattr(model, "pg_collection", None), "cp", None)


def _tensor_parallel_group(model: Any) -> Any:
    from megatron.core import parallel_state

    group = getattr(getattr(model, "pg_collection", None), "tp", None)
    return parallel_state.get_tensor_model_parallel_group() if group is None else group


def _logit_scale(model: Any) -> float:
    """MuP's factor on the logits, where this megatron-core has one."""
    scale = getattr(model, "_scale_logits", None)
    return 1.0 if scale is None else float(scale(torch.ones(())))


def _whole_sequence(model: Any, states: torch.Tensor) -> torch.Tensor:
    """Hidden states [s, b, h] or their sequence-parallel part [s / tp, b, h] as [h, b, s], which can be rolled."""
    if model.config.sequence_parallel:
        from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

        states = gather_from_sequence_parallel_region(states, group=_tensor_parallel_group(model))
    return states.permute(2, 1, 0).contiguous()


def _as_states(whole: torch.Tensor, model: Any) -> torch.Tensor:
    """[h, b, s] as [s, b, h], or with sequence parallelism as this rank's part of it."""
    states = whole.permute(2, 1, 0)
    if model.config.sequence_parallel:
        group = _tensor_parallel_group(model)
        return states.chunk(group.size())[group.rank()]
    return states


def _track(model: Any, depth: int, totals: Totals) -> None:
    """Leave the depth's mean loss where Megatron and its users read it: ``MTPLossLoggingHelper``."""
    from megatron.core import parallel_state

    helper, depths = upstream().MTPLossLoggingHelper, model.config.mtp_num_layers
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    mean = totals.loss / totals.tokens.clamp(min=1)
    if hasattr(helper, "save_metrics_to_tracker"):
        helper.save_metrics_to_tracker(mean, totals.correct, totals.tokens, depth, depths, avg_group=group)
    else:
        helper.save_loss_to_tracker(mean, depth, depths, avg_group=group)
