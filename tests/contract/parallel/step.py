"""One step of training or evaluation of a layout, through Megatron's own schedule and gradient reduction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..models import Batch, build
from ..world import counting, mtp_tracker
from . import weights
from .batches import Grid, local
from .layouts import Layout
from .stand_ins import forget_expert_losses


@dataclass
class Outcome:
    """What a step did on this process; ``gradients`` are the whole model's, on every process."""

    outputs: list[torch.Tensor]  # per micro-batch, this process's part; none before the last pipeline stage
    gradients: dict[str, torch.Tensor]
    mtp_calls: int
    head_calls: int  # vocabulary projections; none before the last stage
    tracked: list[float]  # Megatron's MTP losses, per depth, averaged over ranks; none before the last stage


class Trainer:
    """A model of a layout, its part in this process wrapped as Megatron trains it.

    Args:
        layout: whose groups are in use.
        detach_encoder: asked for along with MTP training.
        ask: whether MTP training is asked for; a model built with ``mtp=None`` has none.
        model: arguments of ``models.build``.
    """

    def __init__(self, layout: Layout, *, detach_encoder: bool = False, ask: bool = True, **model: Any) -> None:
        from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
        from megatron.core.distributed.finalize_model_grads import finalize_model_grads

        forget_expert_losses()
        self.layout = layout
        options = {"variable_seq_lengths": False, **layout.config, **layout.model, **model}
        self.model = self.built(stage=(first_stage(), last_stage()), **options)
        if ask and model.get("mtp", 1):
            # verl asks on every stage; only one that has MTP layers can detach them.
            self.ask(detach_encoder=detach_encoder and getattr(self.model, "mtp", None) is not None)
        self.config = self.model.config
        self.config.finalize_model_grads_func = finalize_model_grads
        self.wrapped = DistributedDataParallel(
            self.config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), self.model
        )

    def built(self, **model: Any) -> Any:
        """This process's part of the model, from arguments of ``models.build``."""
        from verl_mtp_plugin.testing.te_attention import DotProductAttention

        return build(torch.device("cpu"), weights=weights.setter(), attention=DotProductAttention, **model)

    def ask(self, *, detach_encoder: bool) -> None:
        """Ask for MTP training on :attr:`model`."""
        from verl_mtp_plugin.training.request import request, verify

        request(self.model, detach_encoder=detach_encoder)
        verify(self.model)

    def placed(self, batch: Batch) -> Batch:
        """The batch where the model lies."""
        return batch

    def run(self, grid: Grid, *, labels: bool = True, main: float = 0.0) -> Outcome:
        """One step on ``grid``; with gradients off, one evaluation of it.

        Args:
            grid: the batches of all replicas and micro-batches.
            labels: whether the model is given labels and loss mask, on the last stage as verl does.
            main: the weight of the main loss, a fixed random functional of the outputs.
        """
        from megatron.core import parallel_state as state
        from megatron.core.pipeline_parallel import get_forward_backward_func

        rank, size = state.get_context_parallel_rank(), self.layout.context
        replica = state.get_data_parallel_rank()
        mine = [self.placed(local(step[replica], rank, size)) for step in grid]
        outputs: list[torch.Tensor] = []

        def forward(batches: Iterator[Batch], model: Any) -> Any:
            batch = next(batches)
            given: dict[str, Any] = {"labels": None}
            if labels and last_stage():
                given = {"labels": batch.labels, "loss_mask": batch.loss_mask}
            output = model(**batch.inputs(), **given)

            def loss(logits: torch.Tensor) -> Any:
                outputs.append(logits.detach().clone())
                value = probe(logits) * main
                if not self.config.calculate_per_token_loss:
                    return value, {}
                return value, batch.loss_mask.sum().int(), {}

            return output, loss

        self.wrapped.zero_grad_buffer()
        mtp_tracker().clear()
        with counting_calls(self.model) as calls:
            get_forward_backward_func()(
                forward_step_func=forward,
                data_iterator=iter(mine),
                model=[self.wrapped],
                num_microbatches=len(mine),
                seq_length=mine[0].input_ids.shape[1] * size,
                micro_batch_size=mine[0].input_ids.shape[0],
                forward_only=not torch.is_grad_enabled(),
            )
        return Outcome(outputs, self.gradients(), calls["mtp"], calls["head"], tracked_losses(len(mine)))

    def gradients(self) -> dict[str, torch.Tensor]:
        """Of the whole model, by the names of the whole model. A collective."""
        found = {name: parameter.main_grad.cpu().clone() for name, parameter in self.model.named_parameters()}
        return weights.gather(self.model, found)


def first_stage() -> bool:
    from megatron.core import parallel_state

    return bool(parallel_state.is_pipeline_first_stage())


def last_stage() -> bool:
    from megatron.core import parallel_state

    return bool(parallel_state.is_pipeline_last_stage())


@contextlib.contextmanager
def counting_calls(model: Any) -> Iterator[dict[str, int]]:
    """The calls of MTP layers and of the head. A stage without a head has neither."""
    if not model.post_process:
        yield {"mtp": 0, "head": 0}
        return
    with counting(model) as calls:
        yield calls


def probe(output: torch.Tensor) -> torch.Tensor:
    """A fixed random linear functional of a process's output, which stands for the main loss."""
    generator = torch.Generator().manual_seed(11)
    weights = torch.randn(output.shape, generator=generator) / output.numel() ** 0.5
    return (output * weights.to(output.device)).sum()


def tracked_losses(microbatches: int) -> list[float]:
    """Megatron's MTP losses as it reports them: averaged over micro-batches and ranks. A collective."""
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    found: dict[str, Any] = {}
    MTPLossLoggingHelper.track_mtp_metrics(1 / microbatches, 0, None, total_loss_dict=found)
    return [float(value) for value in found.values()]
