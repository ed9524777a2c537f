"""What MTP should compute, in plain PyTorch: the yardstick for the gradients.

Only building blocks of the model are used (norms, projection, transformer layer); the rolling, the loss and its scaling
are written out here, after DeepSeek-V3 (arXiv:2412.19437, 2.2). Nothing that verl or the plugin replaces is called, so
an error there cannot hide here.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .models import Batch


@dataclass(frozen=True)
class Reference:
    """``losses``: mean loss per depth. ``gradients``: of the scaled sum, by parameter name; zeros if out of reach."""

    losses: list[float]
    gradients: dict[str, torch.Tensor]


class _Stop(Exception):
    """Ends a forward pass once the trunk has run."""


def run_trunk(model: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, Any]]:
    """The decoder's output [s, b, h], with its graph, and the arguments that the decoder was called with."""
    seen: dict[str, Any] = {}

    def stop(module: Any, args: Any, kwargs: dict[str, Any], output: torch.Tensor) -> None:
        seen.update(kwargs, output=output)
        raise _Stop

    hook = model.decoder.register_forward_hook(stop, with_kwargs=True)
    try:
        model(**batch.inputs(), labels=None)
    except _Stop:
        pass
    finally:
        hook.remove()
    return seen.pop("output"), seen


def roll(values: torch.Tensor, end: float = 0) -> torch.Tensor:
    """[b, s] one position to the left; what comes in from beyond the end is zero, or ``end``."""
    return torch.cat([values[:, 1:], torch.full_like(values[:, :1], end)], dim=1)


def padding_at_the_end() -> bool:
    """Whether this megatron-core calls a position padding whose next token lies beyond the end (dev, #6246)."""
    from megatron.core.transformer.multi_token_prediction import roll_tensor

    return "fill_values" in inspect.signature(roll_tensor).parameters


def run_mtp(
    model: Any, batch: Batch, hidden: torch.Tensor, call: dict[str, Any], detach_encoder: bool
) -> list[torch.Tensor]:
    """The hidden states [s, b, h] of every depth, each computed from the one before it.

    With ``detach_encoder`` nothing flows back from the MTP block to the trunk or to the token embedding; from one depth
    to the depth before it, it does.
    """
    ids, padding = batch.input_ids, batch.extra.get("padding_mask")
    if detach_encoder:
        hidden = hidden.detach()
    depths = []
    for depth in range(model.config.mtp_num_layers):
        layer = model.mtp.layers[depth % len(model.mtp.layers)]  # one for all depths with mtp_use_repeated_layer
        ids = roll(ids)
        embedded = model.embedding(input_ids=ids, position_ids=batch.position_ids)  # [s, b, h]
        if detach_encoder:
            embedded = embedded.detach()
        joined, _ = layer.eh_proj(torch.cat([layer.enorm(embedded), layer.hnorm(hidden)], dim=-1))
        arguments = {"attention_mask": batch.attention_mask, "rotary_pos_emb": call.get("rotary_pos_emb")}
        if padding is not None:
            padding = roll(padding, padding_at_the_end())
            if "padding_mask" in inspect.signature(type(layer).forward).parameters:
                arguments["padding_mask"] = padding
        inner = layer.mtp_model_layer if hasattr(layer, "mtp_model_layer") else layer.transformer_layer
        hidden, _ = inner(hidden_states=joined, **arguments)
        hidden = layer.final_layernorm(hidden)
        depths.append(hidden)
    return depths


def head_weight(model: Any) -> torch.Tensor:
    """The vocabulary projection [v, h], out of the MTP loss's reach."""
    tied = model.share_embeddings_and_output_weights
    weight: torch.Tensor = model.embedding.word_embeddings.weight if tied else model.output_layer.weight
    return weight.detach()


def cross_entropies(model: Any, batch: Batch, *, detach_encoder: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per depth: the cross entropy of every position [b, s] in fp64, and which of them are trained."""
    labels, mask, config = batch.labels, batch.loss_mask.double(), model.config
    scale = config.mup_output_mult if getattr(config, "use_mup", False) else 1.0
    result = []
    for hidden in run_mtp(model, batch, *run_trunk(model, batch), detach_encoder):
        labels, mask = roll(labels), roll(mask)
        logits = (hidden @ head_weight(model).t()).double() * scale  # [s, b, v]
        result.append((F.cross_entropy(logits.permute(1, 2, 0), labels, reduction="none"), mask))
    return result


def token_losses(model: Any, batch: Batch, *, detach_encoder: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per depth: the summed cross entropy of the trained tokens, and how many they are."""
    depths = cross_entropies(model, batch, detach_encoder=detach_encoder)
    return [((losses * mask).sum(), mask.sum()) for losses, mask in depths]


def mtp_loss(model: Any, batches: Sequence[Batch], *, detach_encoder: bool) -> tuple[torch.Tensor, list[float]]:
    """The scaled MTP loss and its mean per depth; several batches count as one (the sequences of a packed one)."""
    config = model.config
    per_batch = [token_losses(model, batch, detach_encoder=detach_encoder) for batch in batches]
    main_tokens = sum(batch.loss_mask.double().sum() for batch in batches)
    total: Any = 0.0
    means = []
    for depth in zip(*per_batch, strict=True):
        loss = sum(summed for summed, _ in depth) / max(float(sum(count for _, count in depth)), 1.0)
        means.append(float(loss))
        # With a per-token loss Megatron divides all gradients by the main loss's tokens afterwards.
        scale = main_tokens if config.calculate_per_token_loss else 1.0
        total = total + loss * scale * config.mtp_loss_scaling_factor / config.mtp_num_layers
    return total, means


def reference(model: Any, *batches: Batch, detach_encoder: bool = False) -> Reference:
    """The MTP loss and its gradient. ``model`` must be one that nobody has patched."""
    total, means = mtp_loss(model, batches, detach_encoder=detach_encoder)
    named = dict(model.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }
    return Reference(means, gradients)
