"""One optimizer step of verl's Megatron engine: MTP tokens counted before it, MTP metrics reported after it."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any, Final

from ... import runtime
from ...errors import PatchRequiredError
from ...settings import AUTO, JOINT
from ..clipping import grad_clip
from . import tally
from .normalization import StepTokens, step_tokens
from .trained_tokens import all_ranks, trained_tokens

logger = logging.getLogger("verl_mtp_plugin")
#: The patch that clipping apart from the policy depends on.
CLIP_PATCH: Final = "training.grad_clip"


def forward_backward_batch(original: Any, self: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
    """``MegatronEngine.forward_backward_batch``: the step's token counts around it, its MTP losses in its metrics.

    The metrics need a collective, which here every rank of the last pipeline stage takes part in (verl 0.7.1 has only
    some of them do so, and hangs with context parallelism; verl #5895).
    """
    forward_only = kwargs.get("forward_only", args[1] if len(args) > 1 else False)
    depths = _trained_depths(self)
    if forward_only or not depths:
        return original(self, data, *args, **kwargs)
    tally.clear()
    clip_as_asked(self.module, detach_encoder=self.model_config.mtp.detach_encoder)
    with step_tokens(_count(self, data, depths)):
        output = original(self, data, *args, **kwargs)
    from megatron.core import parallel_state

    if parallel_state.is_pipeline_last_stage(ignore_virtual=True):
        found = metrics(depths)
        if self.is_mp_src_rank_with_outputs():
            output["metrics"].update({name: [value] for name, value in found.items()})
    return output


def clip_as_asked(chunks: list[Any], *, detach_encoder: bool) -> None:
    """Tell :mod:`..clipping.grad_clip` about the models that are trained here; on every rank alike.

    Raises:
        PatchRequiredError: a limit for MTP alone was set, and this megatron-core's optimizers cannot be patched.
    """
    from megatron.core.models.gpt.gpt_model import GPTModel

    limit = runtime.settings().clip_grad
    apart = detach_encoder if limit == AUTO else limit != JOINT
    if apart and not _can_clip_apart(required=limit != AUTO):
        return
    for chunk in chunks:
        for model in chunk.modules():
            if isinstance(model, GPTModel):
                grad_clip.track(model, apart=apart, max_norm=limit if isinstance(limit, float) else None)


def _can_clip_apart(*, required: bool) -> bool:
    try:
        runtime.require(CLIP_PATCH)
    except PatchRequiredError as error:
        if required:
            raise
        _warn_once(f"MTP gradients are clipped with the policy's, whose update they shrink: {error}")
        return False
    return True


@lru_cache(maxsize=8)
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def train_batch(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """``MegatronEngine.train_batch``: the MTP parameters' gradient norm beside verl's ``grad_norm``."""
    output = original(self, *args, **kwargs)
    if _trained_depths(self) and self.is_mp_src_rank_with_outputs():
        norm = grad_clip.last_grad_norm(self.optimizer)
        if norm is not None:
            output["metrics"]["mtp/grad_norm"] = [norm]
    return output


def metrics(depths: int) -> dict[str, float]:
    """The MTP metrics of the step that has just run, over all its tokens. A collective of the last pipeline stage.

    ``mtp/loss_depth{d}``: mean loss per trained token. ``mtp/top1_acceptance_depth{d}``: how often the drafted argmax
    is the token that was sampled. ``mtp/tokens``: trained tokens of depth 1. ``mtp_losses/mtp_{d}_loss`` is verl's own
    name of the loss.
    """
    from megatron.core import parallel_state
    from verl.utils.device import get_device_id

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    found: dict[str, float] = {}
    for depth, (loss, acceptance, tokens) in enumerate(tally.take(depths, group, get_device_id()), 1):
        found[f"mtp_losses/mtp_{depth}_loss"] = loss
        found[f"mtp/loss_depth{depth}"] = loss
        found[f"mtp/top1_acceptance_depth{depth}"] = acceptance
        found.setdefault("mtp/tokens", tokens)
    return found


def worker_metrics(original: Any, self: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
    """``TrainingWorker._postprocess_output``, which gathers every metric into lists and reduces verl's own alone.

    Those of :func:`metrics` are the same on all ranks already: they stay numbers, for SFT's trackers as for RL's.
    """
    found = output["metrics"]
    own = {name: float(found.pop(name)[0]) for name in list(found) if name.startswith("mtp/")}
    result = original(self, output, *args, **kwargs)
    if own:
        from verl.utils import tensordict_utils

        tensordict_utils.get(result, "metrics").update(own)
    return result


def no_metrics(original: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
    """``get_megatron_mtp_loss`` as the engine calls it: its place is taken by :func:`metrics`."""
    return {}


def _trained_depths(engine: Any) -> int:
    mtp = engine.model_config.mtp
    if not (mtp.enable and mtp.enable_train) or engine.is_value_model:  # a critic has no labels to train MTP on
        return 0
    return int(getattr(engine.tf_config, "mtp_num_layers", None) or 0)


def _count(engine: Any, data: Any, depths: int) -> StepTokens:
    import torch
    from megatron.core import parallel_state
    from verl.utils.device import get_device_id

    group, device = engine.get_data_parallel_group(), get_device_id()
    counts = trained_tokens(data["input_ids"], data["loss_mask"], data.get("attention_mask", None), depths)
    divisor = 1.0
    if engine.tf_config.calculate_per_token_loss and hasattr(engine, "_routed_num_tokens"):
        routed = engine._routed_num_tokens(data)  # what verl lets Megatron divide gradients by
        (divisor,) = all_ranks(torch.as_tensor(routed).double().reshape(1), group, device)
    return StepTokens(
        per_depth=tuple(all_ranks(counts, group, device)),
        ranks=parallel_state.get_data_parallel_world_size(with_context_parallel=True),
        divisor=divisor,
    )
