"""Mixture of experts with a padding mask, packed sequences, activation recompute."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ..models import Batch, random_batch
from ..reference import reference
from ..world import World
from .registry import check, expect, expect_close, expect_losses, expect_no_mtp, expect_same
from .training import gradients_as_reference

LENGTHS = (10, 6, 14)
RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
BLOCK = {**RECOMPUTE, "recompute_method": "block"}
SELECTIVE = {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "layernorm", "mlp"]}


def _padded(world: World) -> Batch:
    """With a padding mask where this megatron-core's model takes one; the experts' auxiliary loss depends on it."""
    from megatron.core.models.gpt.gpt_model import GPTModel

    if "padding_mask" not in inspect.signature(GPTModel.forward).parameters:
        return world.batch
    mask = torch.zeros_like(world.batch.input_ids, dtype=torch.bool)
    mask[1, 11:] = True
    return world.batch.replace(extra={"padding_mask": mask})


@check()
def moe_labels_none(world: World) -> str:
    """Mixture of experts, padding mask where the model takes one, labels=None: the model without MTP, bit for bit"""
    batch = _padded(world)
    outcome = world.run(world.asked(moe=True), batch, labels=None, main=1.0)
    expect_same(outcome.output, world.plain(batch, moe=True).output, "logits")
    expect_no_mtp(outcome)
    return "padding mask" if batch.extra else "no padding mask in this megatron-core"


@check()
def moe_train(world: World) -> str:
    """Mixture of experts, padding mask where the model takes one: all gradients as the reference"""
    return gradients_as_reference(world, _padded(world), moe=True)


def packed_batch(world: World) -> tuple[Batch, list[Batch]]:
    """Three sequences in one row of packed tokens, and the same three each on its own."""
    from megatron.core.packed_seq_params import PackedSeqParams

    parts = [random_batch(world.device, 1, length, seed=20 + length) for length in LENGTHS]
    # Every token is trained: what rolls in from the next sequence would not be seen behind a mask.
    parts = [part.replace(loss_mask=torch.ones_like(part.loss_mask)) for part in parts]
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to(device=world.device, dtype=torch.int32)
    params = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=max(LENGTHS),
        max_seqlen_kv=max(LENGTHS),
    )
    joined = {
        name: torch.cat([getattr(part, name) for part in parts], dim=1)
        for name in ("input_ids", "position_ids", "labels", "loss_mask")
    }
    return Batch(**joined, attention_mask=None, extra={"packed_seq_params": params}), parts


@check()
def packed_labels_none(world: World) -> str:
    """Packed sequences, labels=None: the model without MTP, bit for bit"""
    batch, _ = packed_batch(world)
    outcome = world.run(world.asked(packed=True), batch, labels=None, main=1.0)
    expect_same(outcome.output, world.plain(batch, packed=True).output, "logits")
    expect_no_mtp(outcome)
    return "right logits"


@check()
def packed_train(world: World) -> str:
    """Packed sequences: as the reference run on each alone; on megatron-core 0.15 an error that says what would work"""
    return packed_as_reference(world)


def packed_as_reference(world: World, **config: Any) -> str:
    """Trains on packed sequences: the sum over them of what the reference says of each alone, or a clear refusal."""
    batch, parts = packed_batch(world)
    model = world.asked(packed=True, **config)
    if world.megatron_core < (0, 16):
        return refused(world, model, batch)
    expected = reference(world.build(packed=True), *parts)
    outcome = world.train(model, batch)
    close = expect_close(outcome.gradients, expected.gradients, world.tolerance, "gradient of")
    return f"{close}, {expect_losses(outcome, expected.losses, 10 * world.tolerance)}"


def refused(world: World, model: object, batch: Batch) -> str:
    try:
        world.train(model, batch)
    except Exception as error:
        installed = ".".join(map(str, world.megatron_core))
        clear = type(error).__name__ == "UnsupportedError" and f"megatron-core {installed}" in str(error)
        expect(clear and ">= 0.16" in str(error), f"not a clear error: {type(error).__name__}: {error}")
        return f"refused: {error}"
    raise AssertionError("neither trained nor refused")


@check()
def recompute_train(world: World) -> str:
    """Full activation recompute: all gradients as the reference without it"""
    return gradients_as_reference(world, besides=RECOMPUTE)


@check()
def recompute_detach(world: World) -> str:
    """Full activation recompute with detach_encoder: all gradients as the reference without it"""
    return gradients_as_reference(world, detach=True, besides=RECOMPUTE)


@check()
def recompute_moe(world: World) -> str:
    """Full activation recompute, mixture of experts, padding mask where the model takes one: as the reference"""
    return gradients_as_reference(world, _padded(world), moe=True, besides=RECOMPUTE)


@check()
def recompute_packed(world: World) -> str:
    """Full activation recompute with packed sequences: as packed_train"""
    return packed_as_reference(world, **RECOMPUTE)


@check()
def recompute_block(world: World) -> str:
    """Full activation recompute by blocks, with detach_encoder: all gradients as the reference without it"""
    return gradients_as_reference(world, detach=True, besides=BLOCK)


@check()
def recompute_selective(world: World) -> str:
    """Selective activation recompute (attention, norms, MLP): all gradients as the reference without it"""
    return gradients_as_reference(world, besides=SELECTIVE)


@check()
def repeated_layer(world: World) -> str:
    """mtp_use_repeated_layer: two depths through one layer, as the reference; an unknown option before 0.17"""
    if world.megatron_core < (0, 17):
        return _unknown_option(world, mtp_use_repeated_layer=True)
    return gradients_as_reference(world, mtp=2, mtp_use_repeated_layer=True)


@check()
def mup_scaling(world: World) -> str:
    """MuP's factor on the logits: in the MTP loss as in the main logits; an unknown option before 0.17"""
    if world.megatron_core < (0, 17):
        return _unknown_option(world, use_mup=True)
    mup: dict[str, Any] = {"use_mup": True, "mup_base_hidden_size": 16}
    outcome = world.run(world.asked(**mup), labels=None)
    expect_same(outcome.output, world.plain(**mup).output, "logits")
    return gradients_as_reference(world, **mup)


def _unknown_option(world: World, **option: Any) -> str:
    (name,) = option
    try:
        world.build(mtp=2, **option)
    except TypeError as error:
        expect(name in str(error), f"an error that does not name {name}: {error}")
        return f"refused: {error}"
    raise AssertionError(f"{name} was taken, but not tested here")
