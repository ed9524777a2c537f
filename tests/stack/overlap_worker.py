"""MTP with overlapped expert parallelism, asked of verl's own functions on a real ``GPTModel``. Prints JSON.

``python -m tests.stack.overlap_worker VERL MEGATRON_CORE on|off``, the last one: the patches.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from types import SimpleNamespace
from typing import Any

import torch

from tests.contract import process


def arm() -> None:
    """The patches under test, unless the plugin has armed them."""
    import verl_mtp_plugin
    from verl_mtp_plugin.patching import PatchEngine
    from verl_mtp_plugin.training import overlap_hooks

    if not any(record.id == overlap_hooks.PLAN.id for record in verl_mtp_plugin.report().patches):
        PatchEngine().arm(overlap_hooks.PATCHES)


def outcome(function: Any, *args: Any, **kwargs: Any) -> str:
    """The kind of what is returned or raised, and the message."""
    try:
        return type(function(*args, **kwargs)).__name__
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def make_plan(world: Any, *, mtp: int | None, with_labels: bool) -> Any:
    """verl's schedule plan of a batch of two rows, whose last node has run if there is an MTP layer before it."""
    verl_plan = importlib.import_module("verl.models.mcore.model_forward_1f1b_overlap")
    model, batch = world.build(mtp=mtp, moe=True), world.batch
    mask = batch.input_ids.bool()
    labels = batch.labels if with_labels else None
    plan = verl_plan.gptmodel_forward_1f1b_overlap(
        model, batch.input_ids, batch.position_ids, mask, labels=labels, labels_mask=mask
    )
    assert vars(model)["_postprocess"].__module__ == verl_plan.__name__
    if mtp:
        for name in ("decoder_input", "rotary_pos_emb", "rotary_pos_cos", "rotary_pos_sin", "sequence_len_offset"):
            setattr(plan.state, name, None)
        trunk_and_depth = torch.zeros(2 * batch.input_ids.numel(), 1, model.config.hidden_size)
        plan.post_process.forward_impl(trunk_and_depth)
    return plan


def main() -> None:
    world, _, verl_error = process.prepare(sys.argv[1], sys.argv[2], plugin=sys.argv[3] == "on", device="cpu")
    assert verl_error is None, verl_error
    megatron_utils = importlib.import_module("verl.utils.megatron_utils")
    if sys.argv[3] == "on":
        arm()
    found: dict[str, Any] = {}
    model_config = SimpleNamespace(mtp=SimpleNamespace(enable=True, detach_encoder=False))
    for overlap in (False, True):
        model = world.build()
        model.config.overlap_moe_expert_parallel_comm = overlap
        wrapped = SimpleNamespace(module=model)  # as DDP and Float16Module hold it
        found[f"engine_overlap_{overlap}"] = outcome(
            megatron_utils.patch_engine_mtp, [wrapped if overlap else model], model_config
        )
        found[f"asked_overlap_{overlap}"] = "_postprocess" in vars(model)
    for mtp in (1, None):
        for with_labels in (False, True):
            found[f"plan_mtp_{mtp}_labels_{with_labels}"] = outcome(make_plan, world, mtp=mtp, with_labels=with_labels)
    engine = importlib.import_module("verl.workers.engine.megatron.transformer_impl").MegatronEngineWithLMHead
    found["forward_step"] = list(inspect.signature(engine.forward_step).parameters)
    print("\n=> " + json.dumps(found))


if __name__ == "__main__":
    main()
