"""verl's real trainers' metrics of a step, from the ``extra_fields`` of its samples. No Ray, no model."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

from verl_mtp_plugin.testing.stub_modules import StubModule

TURNS, PROMPT, RESPONSE = 1, 2, 3  # a turn each, tokens
#: Where verl computes the metrics of a step from samples in TransferQueue: 0.8.0, 0.9.
QUEUE_TRAINERS = ("verl.trainer.main_ppo_sync", "verl.trainer.ppo.v1.trainer_base")


def prepare() -> None:
    """TransferQueue is a package of its own that is not installed here; of it only names are asked for."""
    sys.modules.setdefault("transfer_queue", StubModule("transfer_queue"))


def has(module: str) -> bool:
    """Whether the installed verl has this module."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def make_batch(samples: list[dict[str, Any]]) -> Any:
    """The batch [samples] that verl's agent loop makes of them, with what a trainer adds to it."""
    import torch
    from verl.experimental.agent_loop import agent_loop

    def sample(fields: dict[str, Any]) -> Any:
        ones = torch.ones(1, PROMPT + RESPONSE, dtype=torch.long)
        return agent_loop._InternalAgentLoopOutput(
            prompt_ids=ones[:, :PROMPT],
            response_ids=ones[:, PROMPT:],
            input_ids=ones,
            position_ids=ones,
            response_mask=ones[:, PROMPT:],
            attention_mask=ones,
            num_turns=TURNS,
            metrics=agent_loop.AgentLoopMetrics(),
            extra_fields=dict(fields),
        )

    worker = SimpleNamespace(reward_loop_worker_handles=None, distillation_enabled=False)
    batch = agent_loop.AgentLoopWorker._postprocess(worker, [sample(fields) for fields in samples])
    for name in ("token_level_scores", "token_level_rewards", "advantages", "returns"):
        batch.batch[name] = torch.zeros(len(samples), RESPONSE)
    batch.meta_info["global_token_num"] = [PROMPT + RESPONSE] * len(samples)
    return batch


def ray_trainer(batch: Any) -> dict[str, Any]:
    """What ``RayPPOTrainer.fit`` adds to its metrics for this batch."""
    from verl.trainer.ppo import ray_trainer

    metrics = dict(ray_trainer.compute_data_metrics(batch=batch, use_critic=False))
    if hasattr(ray_trainer, "compute_spec_decode_metrics"):
        names = ("spec_num_draft_tokens", "spec_num_accepted_tokens", "spec_num_verify_steps")
        columns = [batch.non_tensor_batch.get(name, None) for name in names]
        metrics.update(ray_trainer.compute_spec_decode_metrics(*columns))
    return metrics


def separation(batch: Any) -> dict[str, Any]:
    """The base of separation, one-step-off and fully asynchronous training."""
    from verl.experimental.separation.ray_trainer import SeparateRayPPOTrainer

    trainer = SimpleNamespace(
        metrics={},
        timing_raw={"step": 1.0},
        use_critic=False,
        resource_pool_manager=SimpleNamespace(get_n_gpus=lambda: 1),
    )
    SeparateRayPPOTrainer._fit_collect_metrics(trainer, batch)
    return trainer.metrics


def from_queue(samples: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The trainers that read samples from TransferQueue (0.8.0's main_ppo_sync, 0.9's V1); None in 0.7.1.

    One more sample is padding, with counts that must not matter.
    """
    name = next((name for name in QUEUE_TRAINERS if has(name)), None)
    if name is None:
        return None
    import torch
    from tensordict import NonTensorData, NonTensorStack, TensorDict

    module = importlib.import_module(name)
    everything = [*samples, dict.fromkeys(samples[0], 1_000_000)]
    count = len(everything)

    def nested(length: int, dtype: Any) -> Any:
        return torch.nested.as_nested_tensor([torch.ones(length, dtype=dtype)] * count, layout=torch.jagged)

    def kv_batch_get(keys: list[str], partition_id: str, select_fields: list[str]) -> Any:
        if select_fields == ["extra_fields"]:
            stack = NonTensorStack(*[NonTensorData(fields) for fields in everything])
            return TensorDict({"extra_fields": stack}, batch_size=count)
        columns = {name: nested(RESPONSE, torch.float) for name in ("advantages", "returns", "rm_scores", "values")}
        columns |= {"prompts": nested(PROMPT, torch.long), "responses": nested(RESPONSE, torch.long)}
        columns["response_mask"] = nested(RESPONSE, torch.long)
        turns = NonTensorStack(*[NonTensorData(TURNS)] * count)
        return TensorDict({**columns, "num_turns": turns}, batch_size=count)

    vars(module)["tq"] = SimpleNamespace(kv_batch_get=kv_batch_get)
    mtp = SimpleNamespace(enable=True, enable_rollout=True)
    actor = SimpleNamespace(model=SimpleNamespace(mtp=mtp), rollout={})
    trainer = SimpleNamespace(
        config=SimpleNamespace(actor_rollout_ref=actor),
        use_critic=False,
        resource_pool_manager=SimpleNamespace(get_n_gpus=lambda: 1),
        _get_n_gpus_for_throughput=lambda: 1,
        _rollout_moe_lb_metrics_accumulator=None,
    )
    tags = [{"is_padding": i == count - 1, "min_global_steps": 1, "max_global_steps": 1} for i in range(count)]
    step = SimpleNamespace(keys=list(map(str, range(count))), partition_id="train", tags=tags)
    metrics: dict[str, Any] = {}
    module.PPOTrainer._compute_metrics(trainer, step, metrics, {"step": 1.0}, 2, 0)
    return metrics
