"""verl 0.7.1's own workers and actor, as far as they concern MTP, on the CPU. Prints JSON.

``python -m tests.stack.verl_legacy_worker FOLDER``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from . import watched_engine as common
from .verl_fixes_samples import MASKS, PROMPTS, RESPONSES

MTP = {"enable": True, "enable_train": True, "mtp_loss_scaling_factor": 0.3, "detach_encoder": True}


def new_worker(source: Path, **roles: bool) -> Any:
    """An ``ActorRolloutRefWorker`` with what building Megatron's config needs."""
    from omegaconf import OmegaConf
    from verl.workers.megatron_workers import ActorRolloutRefWorker

    worker = object.__new__(ActorRolloutRefWorker)
    worker.config = OmegaConf.create({"model": {"path": str(source), "mtp": MTP}})
    for role in ("actor", "rollout", "ref"):
        setattr(worker, f"_is_{role}", roles.get(role, False))
    vars(worker)["_rank"] = 0
    return worker


def depths(source: Path, *, enable_mtp: bool, vanilla: bool = True, **roles: bool) -> tuple[Any, Any]:
    """``mtp_num_layers`` that a worker of these roles builds its model with, and of mbridge (``vanilla``) overrides."""
    import torch
    from omegaconf import OmegaConf

    from verl_mtp_plugin.testing.verl_engine import TRANSFORMER_CONFIG

    worker = new_worker(source, **roles)
    sizes = ("tensor", "pipeline", "expert")
    megatron = {f"{size}_model_parallel_size": 1 for size in sizes} | {
        "use_mbridge": True,
        "vanilla_mbridge": vanilla,
        "expert_tensor_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "context_parallel_size": 1,
        "sequence_parallel": False,
    }
    worker._init_hf_config_and_tf_config(
        str(source),
        str(source),
        torch.bfloat16,
        {},
        dict(TRANSFORMER_CONFIG),
        False,
        OmegaConf.create(megatron),
        enable_mtp,
    )
    if vanilla:
        return worker.tf_config.mtp_num_layers, worker.bridge.extra_args.get("mtp_num_layers", "none")
    return worker.provider.mtp_num_layers, None


def refused(built: Any) -> dict[str, str]:
    """Which models verl's own worker may train on; building them is the caller's."""
    from verl_mtp_plugin.verl_fixes.legacy_workers import build_model_optimizer

    def check(*, depths: int | None = 1, enabled: bool = True, trained: bool = True, packed: bool = True) -> str:
        worker = new_worker(Path("model"), actor=True)
        worker.config.model.mtp.enable, worker.config.model.mtp.enable_train = enabled, trained
        worker.hf_config, worker.bridge = built._engine.model_config.hf_config, built._engine.bridge
        worker.config.actor = {"megatron": {"use_remove_padding": packed}}
        worker.vanilla_bridge = True
        model = common.Witness(built._engine).model
        model.config.mtp_num_layers = depths
        try:
            build_model_optimizer(lambda worker: (built._engine.module, "optimizer"), worker)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "passed"

    return {
        "built": check(),
        "not_built": check(depths=None),
        "not_built_frozen": check(depths=None, trained=False),
        "disabled": check(enabled=False),
        "padded": check(packed=False),
    }


def new_actor(built: Any, *, mtp: dict[str, Any] | None) -> Any:
    """verl's own actor on an engine's model and optimizer."""
    from omegaconf import OmegaConf
    from verl.workers.actor.megatron_actor import MegatronPPOActor
    from verl.workers.config import McoreActorConfig, McoreEngineConfig

    engine = built._engine
    config = McoreActorConfig(
        strategy="megatron",
        rollout_n=1,
        ppo_mini_batch_size=3,
        ppo_micro_batch_size_per_gpu=3,
        use_dynamic_bsz=False,
        megatron=McoreEngineConfig(use_mbridge=True, vanilla_mbridge=True, use_remove_padding=True),
    )
    return MegatronPPOActor(
        config=config,
        model_config=engine.model_config.hf_config,
        hf_config=engine.model_config.hf_config,
        tf_config=engine.tf_config,
        actor_module=engine.module,
        actor_optimizer=engine.optimizer,
        mtp_config=OmegaConf.create(mtp) if mtp else None,
    )


def actor_batch() -> Any:
    """The three samples as verl's own actor takes them: padded on both sides."""
    import torch
    from verl import DataProto

    padded, ones = common.padded, common.ones
    prompts, responses = padded(PROMPTS, left=True), padded(RESPONSES)
    attention = torch.cat([padded(ones(PROMPTS), left=True), padded(ones(RESPONSES))], dim=1)
    tensors = {
        "input_ids": torch.cat([prompts, responses], dim=1),
        "attention_mask": attention,
        "position_ids": (attention.cumsum(dim=1) - 1).clamp(min=0),
        "responses": responses,
        "response_mask": padded(MASKS),
        "old_log_probs": torch.full(responses.shape, -3.5),
        "advantages": torch.ones(responses.shape),
    }
    return DataProto.from_dict(tensors=tensors, meta_info={"temperature": 1.0, "micro_batch_size": 3})


def act(folder: Path, mtp: dict[str, Any] | None) -> dict[str, Any]:
    """Log-prob recompute and one step of verl's own actor."""
    built = common.mtp_engine(folder, train_mtp=bool(mtp), with_mtp=bool(mtp))
    actor, witness = new_actor(built, mtp=mtp), common.Witness(built._engine)
    log_probs = actor.compute_log_prob(actor_batch())
    if isinstance(log_probs, tuple):
        log_probs = log_probs[0]
    recompute = witness.take()
    for chunk in actor.actor_module:
        chunk.train()
    metrics = actor.update_policy([actor_batch()])
    return {
        "log_probs": log_probs.tolist(),
        "recompute": recompute,
        "step": witness.take(),
        "metrics": sorted(metrics),
    }


def main() -> None:
    common.prepare(bare=False)
    folder = Path(sys.argv[1])
    source = common.make_model(folder)
    found: dict[str, Any] = {}
    built = common.mtp_engine(folder, train_mtp=True)  # sets up Megatron's process groups, too
    configs = {
        "actor": depths(source, enable_mtp=True, actor=True, rollout=True),
        "actor_disabled": depths(source, enable_mtp=False, actor=True),
        "reference": depths(source, enable_mtp=True, ref=True),
        "critic": depths(source, enable_mtp=False),
    }
    found["depths"] = {name: config[0] for name, config in configs.items()}
    found["overrides"] = {name: config[1] for name, config in configs.items()}
    found["refused"] = refused(built)
    found["actors"] = {
        "trained": act(folder, MTP),
        "enabled": act(folder, MTP | {"enable_train": False}),
        "disabled": act(folder, None),
    }
    print("=> " + json.dumps({"decisions": common.decisions(), **found}))


if __name__ == "__main__":
    main()
