"""A tiny model with a real Megatron optimizer, trained for some steps, for :mod:`.grad_clip_worker`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import torch

from tests.contract.models import build, random_batch

CPU = torch.device("cpu")
STEPS = 5
LR = 0.05
CLIP_GRAD, MAX_NORM = 0.2, 0.05  # below the norms of the policy and of MTP: clipping is active at every step


@dataclasses.dataclass(frozen=True)
class Kind:
    """An optimizer that Megatron builds.

    Args:
        bf16: bf16 parameters with fp32 copies.
        distributed: Megatron's distributed optimizer.
        moe: experts, for which Megatron chains a second optimizer.
        decoupled: the precision-aware optimizer, whose gradients are in ``decoupled_grad``.
        adam: Adam; SGD otherwise, whose update is the clipped gradient times the learning rate.
        detach_heads: megatron-core 0.19's own switch, which has it clip MTP apart.
        early: whether the model is tracked before its optimizer is built.
        clip_grad: the optimizer's own limit, 0 for none.
    """

    bf16: bool = False
    distributed: bool = False
    moe: bool = False
    decoupled: bool = False
    adam: bool = False
    detach_heads: bool = False
    early: bool = True
    clip_grad: float = CLIP_GRAD


KINDS = {
    "fp32": Kind(),
    "bf16": Kind(bf16=True, early=False),
    "distributed": Kind(distributed=True, adam=True),
    "distributed_bf16": Kind(bf16=True, distributed=True, adam=True, early=False),
    "precision_aware": Kind(bf16=True, distributed=True, decoupled=True, adam=True),
    "moe": Kind(moe=True, early=False),
    "moe_distributed": Kind(moe=True, distributed=True, adam=True),
    "unclipped": Kind(clip_grad=0.0),
    "detach_heads": Kind(detach_heads=True),
}


class Run:
    """A model, its optimizer, and what was seen of them.

    Args:
        kind: which optimizer.
        mtp: whether the model has MTP layers, trained with ``detach_encoder``.
        track: the arguments of :func:`verl_mtp_plugin.training.clipping.grad_clip.track`, None for Megatron as it is.
        model: more arguments of :func:`tests.contract.models.build`.
    """

    def __init__(self, kind: Kind, *, mtp: bool = True, track: dict[str, Any] | None = None, **model: Any) -> None:
        from verl_mtp_plugin.training.clipping import grad_clip
        from verl_mtp_plugin.training.request import request

        if kind.detach_heads and mtp:
            model["mtp_detach_heads"] = True
        if kind.moe:  # Megatron's tracker of auxiliary losses has room for the layers of its first model only
            model |= {"moe_router_load_balancing_type": "none", "moe_aux_loss_coeff": 0.0}
        self.mtp = mtp
        self.model = build(CPU, mtp=1 if mtp else None, moe=kind.moe, **model)
        if kind.bf16:
            self.model.bfloat16()
        for name, parameter in self.model.named_parameters() if kind.moe else ():
            if ".experts." in name:
                parameter.allreduce = False  # as Megatron marks experts that are spread over ranks
        if getattr(self.model, "mtp", None) is not None:
            request(self.model, detach_encoder=True)
        if track is not None and kind.early:
            grad_clip.track(self.model, **track)
        self.ddp, self.optimizer = wrap(self.model, kind)
        if track is not None and not kind.early:
            grad_clip.track(self.model, apart=not track["apart"])  # a later call wins
            grad_clip.track(self.model, **track)
        self.seen: dict[str, list[Any]] = {name: [] for name in ("norms", "zeros", "mtp_norms", "squares", "factors")}

    def named(self, *, mtp: bool) -> dict[str, Any]:
        return {n: p for n, p in self.model.named_parameters() if n.startswith("mtp.") is mtp}

    def backward(self, seed: int = 0) -> None:
        """Gradients of a main loss and, with MTP, of the MTP loss."""
        batch = random_batch(CPU, seed=seed)
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        trained = {"labels": batch.labels, "loss_mask": batch.loss_mask} if self.mtp else {}
        output = self.ddp(**batch.inputs(), **trained)
        generator = torch.Generator().manual_seed(11)
        weights = torch.randn(output.shape, generator=generator) / output.numel() ** 0.5
        (output * weights.to(output)).sum().backward()
        self.ddp.finish_grad_sync()

    def give_gradients(self, seed: int) -> None:
        """Random gradients instead."""
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.model.parameters():
            parameter.main_grad.copy_(torch.randn(parameter.shape, generator=generator))

    def step(self) -> None:
        """One step of the optimizer; notes what it reports, and what its gradients and its update really were."""
        from verl_mtp_plugin.training.clipping.grad_clip import last_grad_norm

        before = {n: (p.detach().double(), p.main_grad.double()) for n, p in self.named(mtp=True).items()}
        squares = self.squares()
        done, norm, zeros = self.optimizer.step()
        assert done
        after = {n: p.detach().double() for n, p in self.named(mtp=True).items()}
        # With SGD: how much of each MTP gradient was left after clipping.
        left = [float(((w - after[n]) * g).sum() / (LR * (g * g).sum())) for n, (w, g) in before.items() if g.any()]
        found = {
            "norms": float(norm), "zeros": int(zeros), "mtp_norms": last_grad_norm(self.optimizer),
            "squares": squares, "factors": [min(left), max(left)] if left else None,
        }  # fmt: skip
        for name, value in found.items():
            self.seen[name].append(value)

    def squares(self) -> dict[str, float]:
        """Squared norms of this rank's gradients, of parameters split over tensor-parallel ranks and of whole ones."""
        found = dict.fromkeys(("mtp", "mtp split", "policy", "policy split"), 0.0)
        for name, parameter in self.model.named_parameters():
            if not getattr(parameter, "shared", False):  # a copy of another stage's
                split = " split" if getattr(parameter, "tensor_model_parallel", False) else ""
                owner = "mtp" if name.startswith("mtp.") else "policy"
                found[owner + split] += float((parameter.main_grad.double() ** 2).sum())
        return found

    def train(self, steps: int = STEPS) -> Run:
        for seed in range(steps):
            self.backward(seed)
            self.step()
        return self

    def report(self) -> dict[str, Any]:
        """What was seen by step, and the weights now, as digests."""
        parts = getattr(self.optimizer, "chained_optimizers", [])
        return {
            **self.seen,
            "policy": digest(self.named(mtp=False).values()),
            "mtp": digest(self.named(mtp=True).values()),
            "optimizers": [type(part).__name__ for part in parts],
        }


def wrap(model: Any, kind: Kind) -> tuple[Any, Any]:
    """Megatron's DDP around the model, and the optimizer that Megatron builds for it."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    distribution = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=kind.distributed)
    ddp = DistributedDataParallel(model.config, distribution, model)
    config = OptimizerConfig(
        optimizer="adam" if kind.adam else "sgd", lr=LR, weight_decay=0.0, sgd_momentum=0.0, clip_grad=kind.clip_grad,
        bf16=kind.bf16, params_dtype=torch.bfloat16 if kind.bf16 else torch.float32,
        use_distributed_optimizer=kind.distributed, log_num_zeros_in_grad=True,
    )  # fmt: skip
    config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = kind.decoupled  # asking for it needs TransformerEngine
    optimizer = get_megatron_optimizer(config, [ddp])
    for part in optimizer.chained_optimizers if kind.decoupled else ():
        part.optimizer.register_step_pre_hook(_read_decoupled)
    return ddp, optimizer


def _read_decoupled(optimizer: Any, args: Any, kwargs: Any) -> None:
    """What TransformerEngine's FusedAdam does in its kernel: it takes the gradient from ``decoupled_grad``."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = parameter.decoupled_grad.to(parameter.dtype)


def digest(parameters: Iterable[torch.Tensor]) -> str:
    total = hashlib.sha256()
    for parameter in parameters:
        total.update(parameter.detach().float().numpy().tobytes())
    return total.hexdigest()
