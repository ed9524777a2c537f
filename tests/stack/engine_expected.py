"""What an optimizer step on MiMo must report, computed from its Hugging Face tensors in plain PyTorch and fp32.

Nothing of verl, Megatron or the plugin takes part: the forward is the quickstart's own sampler's, and the gradients
are autograd's.
"""

from __future__ import annotations

from collections.abc import Mapping

import model as tiny
import torch
from data import Encoded
from sampler import TinyMiMo
from torch import Tensor


def expected_step(weights: Mapping[str, Tensor], batch: list[Encoded], *, mtp_scale: float) -> dict[str, float]:
    """Losses and gradient norms of one step in which the MTP loss trains nothing but the MTP layer.

    Args:
        weights: ``[out, in]`` by Hugging Face name, before the step.
        batch: all sequences of the step.
        mtp_scale: ``mtp_loss_scaling_factor``, by which the MTP gradient is multiplied and the reported loss is not.

    Returns:
        By the plugin's name where it has one; ``loss`` and ``grad_norm`` are the policy's.
    """
    policy = TinyMiMo(weights, tiny.CONFIG)
    own = _trained(policy, mtp=False)
    targets = [encoded.loss_mask[1:].bool() for encoded in batch]
    rows = [policy.log_probs(encoded.ids)[target] for encoded, target in zip(batch, targets)]
    loss = -torch.cat(rows).mean()  # one mean over the step's response tokens
    loss.backward()

    drafting = TinyMiMo(weights, tiny.CONFIG)
    drafter = _trained(drafting, mtp=True)
    targets = [encoded.loss_mask[2:].bool() for encoded in batch]
    logits = torch.cat([_draft_logits(drafting, encoded.ids)[target] for encoded, target in zip(batch, targets)])
    labels = torch.cat([encoded.ids[2:][target] for encoded, target in zip(batch, targets)])
    mtp_loss = torch.nn.functional.cross_entropy(logits, labels)
    (mtp_scale * mtp_loss).backward()
    return {
        "loss": float(loss),
        "grad_norm": _norm(own),
        "mtp/loss_depth1": float(mtp_loss),
        "mtp/top1_acceptance_depth1": float((logits.argmax(-1) == labels).float().mean()),
        "mtp/grad_norm": _norm(drafter),
        "mtp/tokens": len(labels),
    }


def _trained(model: TinyMiMo, *, mtp: bool) -> list[Tensor]:
    """The tensors that this loss trains, made leaves that record gradients."""
    chosen = [tensor for name, tensor in model.weights.items() if ("mtp" in name) is mtp]
    return [tensor.requires_grad_() for tensor in chosen]


def _draft_logits(model: TinyMiMo, ids: Tensor) -> Tensor:
    """``[t]`` to logits ``[t - 2, vocab]`` for each id after next."""
    _, hidden = model.main(ids[None], {})
    return model.draft(hidden[:, :-1], ids[None, 1:], {})[0, :-1]


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.grad.norm() for tensor in tensors if tensor.grad is not None]).norm())
