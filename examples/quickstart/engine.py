"""verl's real Megatron engine in one process, and the four things the quickstart asks of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data import Problem, verl_batch
from torch import Tensor

from verl_mtp_plugin.testing import cuda, transformer_engine, verl_engine


def prepare(*, plugin: bool = True) -> None:
    """Put the stand-ins in place, then load verl and with it the plugin (``plugin``: also if it is not installed)."""
    cuda.install()
    import verl  # noqa: F401  # its plugin discovery loads an installed verl-mtp-plugin

    import verl_mtp_plugin

    # A checkout on PYTHONPATH has no entry points to be discovered by.
    if plugin and not verl_mtp_plugin.report().active:
        verl_mtp_plugin.activate()
    cuda.install_megatron()
    cuda.init_process_group()
    transformer_engine.install()
    verl_engine.install()


@dataclass(frozen=True)
class Step:
    """What verl reports of one optimizer step. ``mtp_loss`` is None where MTP was not trained."""

    loss: float
    mtp_loss: float | None
    grad_norm: float


class Engine:
    """``MegatronEngineWithLMHead`` over a model folder, with MTP in the model and its training on or off."""

    def __init__(
        self,
        folder: Path,
        *,
        train_mtp: bool,
        steps: int,
        learning_rate: float = 3e-3,
        with_mtp: bool = True,
        vanilla_mbridge: bool = True,
        remove_padding: bool = True,
        micro_batch_tokens: int = 8192,
        ddp_config: Mapping[str, Any] | None = None,
        saved: tuple[str, ...] = ("model", "optimizer", "extra"),
    ) -> None:
        from verl.trainer.config import CheckpointConfig
        from verl.workers.config import HFModelConfig, McoreEngineConfig, McoreOptimizerConfig
        from verl.workers.config.model import MtpConfig
        from verl.workers.engine import EngineRegistry

        self._engine: Any = EngineRegistry.new(
            model_type="language_model",
            backend="megatron",
            model_config=HFModelConfig(
                path=str(folder),
                use_remove_padding=remove_padding,
                override_config={"attn_implementation": "eager"},
                mtp=MtpConfig(
                    enable=with_mtp, enable_train=train_mtp, detach_encoder=True, mtp_loss_scaling_factor=0.3
                ),
            ),
            engine_config=McoreEngineConfig(
                use_mbridge=True,
                vanilla_mbridge=vanilla_mbridge,
                use_remove_padding=remove_padding,
                use_distributed_optimizer=True,
                tensor_model_parallel_size=1,
                dtype="bfloat16",
                override_ddp_config=dict(ddp_config or {}),
                override_transformer_config=dict(verl_engine.TRANSFORMER_CONFIG),
            ),
            optimizer_config=McoreOptimizerConfig(
                lr=learning_rate,
                lr_warmup_steps=min(10, steps // 2),
                lr_decay_steps=steps,
                lr_decay_style="constant",
                total_training_steps=steps,
                clip_grad=1.0,
                weight_decay=0.0,  # so that a tensor without a gradient stays as it is, bit for bit
            ),
            checkpoint_config=CheckpointConfig(save_contents=list(saved), load_contents=list(saved)),
        )
        self._engine.initialize()
        self.tokenizer = self._engine.model_config.tokenizer
        self._batch_options = {"use_remove_padding": remove_padding, "max_token_len_per_gpu": micro_batch_tokens}

    def batch(self, problems: list[Problem]) -> Any:
        """The problems as this engine takes them: a TensorDict."""
        from verl.utils import tensordict_utils

        data = verl_batch(self.tokenizer, problems)
        tensordict_utils.assign_non_tensor(data, **self._batch_options)
        return data

    def train(self, problems: list[Problem]) -> Step:
        """One optimizer step on one batch."""
        from verl.workers.utils.losses import sft_loss

        with self._engine.train_mode():
            output = self._engine.train_batch(self.batch(problems), loss_function=partial(sft_loss, config=None))
            self._engine.lr_scheduler_step()
        metrics = output["metrics"]
        mtp_losses = [_mean(value) for name, value in metrics.items() if name.startswith("mtp/loss_depth")]
        return Step(
            loss=_total(output["loss"]),
            mtp_loss=mtp_losses[0] if mtp_losses else None,
            grad_norm=_mean(metrics["grad_norm"]),
        )

    def log_probs(self, problems: list[Problem]) -> list[Tensor]:
        """Log-probability of each next token, ``[t - 1]`` of each problem: what PPO and GRPO recompute every step."""
        from verl.utils import tensordict_utils

        batch = self.batch(problems)
        tensordict_utils.assign_non_tensor(batch, calculate_entropy=True, compute_loss=False)
        with self._engine.eval_mode():
            output = self._engine.infer_batch(batch, loss_function=None)
        rows = zip(output["model_output"]["log_probs"].unbind(), batch["input_ids"].unbind())
        return [row[: len(ids) - 1].float() for row, ids in rows]

    def export(self) -> dict[str, Tensor]:
        """Every tensor by Hugging Face name, as verl sends them to its rollout engine."""
        tensors, _ = self._engine.get_per_tensor_param()
        return {name: tensor.detach().clone() for name, tensor in tensors}

    @contextmanager
    def counting_mtp_calls(self) -> Iterator[list[str]]:
        """Within it, the list grows by one name for each call of an MTP layer."""
        from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer

        calls: list[str] = []
        hooks = [
            layer.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
            for chunk in self._engine.module
            for name, layer in chunk.named_modules()
            if isinstance(layer, MultiTokenPredictionLayer)
        ]
        if not hooks:
            raise RuntimeError("the model was built without an MTP layer: run `verl-mtp doctor`")
        try:
            yield calls
        finally:
            for hook in hooks:
                hook.remove()


def _mean(value: Any) -> float:
    values = value if isinstance(value, list) else [value]
    return sum(float(v) for v in values) / len(values)


def _total(value: Any) -> float:
    return sum(map(float, value)) if isinstance(value, list) else float(value)
