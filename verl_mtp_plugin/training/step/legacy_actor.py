"""The same as :mod:`.engine` for verl 0.7.1's own actor, ``MegatronPPOActor``; gone with verl 0.8.0."""

from __future__ import annotations

from typing import Any

from ..clipping import grad_clip
from . import tally
from .engine import clip_as_asked, metrics
from .normalization import StepTokens, current, step_tokens
from .trained_tokens import all_ranks, trained_tokens


def forward_backward_batch(original: Any, self: Any, data: Any, forward_only: bool = False, **kwargs: Any) -> Any:
    """``MegatronPPOActor.forward_backward_batch`` with the step's token counts around it."""
    if forward_only or not _trains(self):
        return original(self, data, forward_only, **kwargs)
    tally.clear()
    clip_as_asked(self.actor_module, detach_encoder=self.mtp_config.detach_encoder)
    with step_tokens(_count(self, data)):
        return original(self, data, forward_only, **kwargs)


def mtp_loss(original: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
    """``get_megatron_mtp_loss`` as the actor calls it, on every rank and within the step."""
    from megatron.core import parallel_state

    step = current()
    if step is None or not parallel_state.is_pipeline_last_stage(ignore_virtual=True):
        return {}
    return metrics(len(step.per_depth))


def update_policy(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """``MegatronPPOActor.update_policy``: the MTP parameters' gradient norm of its last step among its metrics."""
    found = original(self, *args, **kwargs)
    norm = grad_clip.last_grad_norm(self.actor_optimizer) if _trains(self) else None
    if norm is not None:
        found["mtp/grad_norm"] = [norm]
    return found


def _trains(actor: Any) -> bool:
    return bool(actor.mtp_config and actor.mtp_config.enable_train)


def _count(actor: Any, data: Any) -> StepTokens:
    from megatron.core import parallel_state
    from verl.utils.device import get_device_id

    batch = data.batch
    attention_mask, responses = batch["attention_mask"], batch["responses"].shape[1]
    # verl masks the position that predicts a token, one to the left of it.
    loss_mask = attention_mask[:, -responses - 1 : -1]
    counts = trained_tokens(batch["input_ids"], loss_mask, attention_mask, actor.tf_config.mtp_num_layers)
    group = parallel_state.get_data_parallel_group()
    return StepTokens(
        per_depth=tuple(all_ranks(counts, group, get_device_id())),
        ranks=parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    )
