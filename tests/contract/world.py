"""What a cell's checks run in: the device, how MTP is asked for, and how a model's behavior is measured."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from .models import Batch, build, random_batch


@dataclass
class Outcome:
    """What one forward pass, and its backward pass where there was one, did."""

    output: torch.Tensor
    gradients: dict[str, torch.Tensor]  # by parameter name; zeros where there is none
    mtp_calls: int
    head_calls: int
    tracker: dict[str, Any]


@dataclass(frozen=True)
class World:
    """A cell's surroundings.

    Args:
        device: where the models lie.
        megatron_core: its version, as numbers.
        mtp_patch: verl's own module ``verl.models.mcore.mtp_patch``, or None without verl.
        plugin: whether verl-mtp-plugin is active.
    """

    device: torch.device
    megatron_core: tuple[int, ...]
    mtp_patch: ModuleType | None
    plugin: bool
    batch: Batch = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch", random_batch(self.device))

    @property
    def tolerance(self) -> float:
        """Largest difference from the reference, relative to a parameter's largest gradient (fp32; bf16 on CUDA)."""
        return 3e-2 if self.device.type == "cuda" else 1e-5

    def build(self, **kwargs: Any) -> Any:
        """A fresh model that nobody has asked anything of."""
        return build(self.device, **kwargs)

    def asked(self, *, detach_encoder: bool = False, **kwargs: Any) -> Any:
        """A fresh model on which MTP training was asked for."""
        model = self.build(**kwargs)
        self.ask(model, detach_encoder=detach_encoder)
        return model

    def ask(self, model: Any, *, detach_encoder: bool = False) -> None:
        """Ask for MTP training as verl's ``patch_engine_mtp`` does, or the plugin's own way where there is no verl."""
        with contextlib.redirect_stdout(sys.stderr):
            if self.mtp_patch is not None:
                self.mtp_patch.patch_postprocess(model)
                if hasattr(self.mtp_patch, "patch_mtp_layer_checkpointed_forward"):
                    self.mtp_patch.patch_mtp_layer_checkpointed_forward(model)
                if detach_encoder:
                    self.mtp_patch.patch_mtp_layer_get_embeddings(model)
            elif self.plugin:
                from verl_mtp_plugin.training.request import request

                request(model, detach_encoder=detach_encoder)

    def withdraw(self, model: Any) -> None:
        """Take the request back, as verl does."""
        if self.mtp_patch is not None:
            self.mtp_patch.unpatch_postprocess(model)
        elif self.plugin:
            del model._postprocess

    def probe(self, output: torch.Tensor) -> torch.Tensor:
        """A fixed random linear functional of ``output``, which stands for the main loss."""
        generator = torch.Generator().manual_seed(11)
        weights = torch.randn(output.shape, generator=generator) / output.numel() ** 0.5
        return (output * weights.to(output)).sum()

    def run(self, model: Any, batch: Batch | None = None, *, main: float = 0.0, **call: Any) -> Outcome:
        """One forward pass, and a backward pass where gradients are on.

        Args:
            model: called with the batch's inputs and ``call``.
            batch: the world's own when None.
            main: the weight of the main loss. With 0 the gradients are those of the MTP loss alone.
            call: ``labels``, ``loss_mask``; nothing else is added.
        """
        batch = batch or self.batch
        tracker = mtp_tracker()
        tracker.clear()
        model.zero_grad(set_to_none=True)
        with counting(model) as calls:
            output = model(**batch.inputs(), **call)
        if torch.is_grad_enabled():
            (self.probe(output) * main).backward()
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        }
        return Outcome(output.detach(), gradients, calls["mtp"], calls["head"], dict(tracker))

    def train(self, model: Any, batch: Batch | None = None, **kwargs: Any) -> Outcome:
        """:meth:`run` with the batch's labels and loss mask."""
        batch = batch or self.batch
        return self.run(model, batch, labels=batch.labels, loss_mask=batch.loss_mask, **kwargs)

    def plain(
        self, batch: Batch | None = None, *, main: float = 0.0, eval_mode: bool = False, **kwargs: Any
    ) -> Outcome:
        """The same model without MTP, called without labels."""
        model = self.build(mtp=None, **kwargs)
        return self.run(model.train(not eval_mode), batch, main=main, labels=None)


def mtp_tracker() -> dict[str, Any]:
    """Where megatron-core collects MTP metrics."""
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    tracker: dict[str, Any] = MTPLossLoggingHelper.tracker
    return tracker


@contextlib.contextmanager
def counting(model: Any) -> Iterator[dict[str, int]]:
    """Count the calls of MTP layers and of the vocabulary projection."""
    calls = {"mtp": 0, "head": 0}

    def counter(what: str) -> Any:
        def hook(*_: Any) -> None:
            calls[what] += 1

        return hook

    mtp = getattr(model, "mtp", None)
    hooks = [layer.register_forward_pre_hook(counter("mtp")) for layer in (mtp.layers if mtp is not None else ())]
    hooks.append(model.output_layer.register_forward_pre_hook(counter("head")))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
