"""A block that takes more than the trunk's hidden states, detached and not; for :mod:`.frozen_worker`."""

from __future__ import annotations

import collections
import importlib
from dataclasses import dataclass
from typing import Any

import torch

from tests.contract.checks.registry import is_mtp
from tests.contract.world import World


@dataclass
class Pack:
    """An argument with a tensor in it, as ``PackedSeqParams`` has some."""

    inner: torch.Tensor
    number: int = 3


def block_with_more(block: Any, entered: collections.Counter[str]) -> type:
    """A stand-in for blocks such as megatron-core dev's, which computes from all that it is given."""
    base: Any = type(block)

    def forward(
        self: Any, hidden_states: Any, decoder_input: Any, extra: Any, nested: Any, input_ids: Any, position_ids: Any,
        attention_mask: Any, rotary_pos_emb: Any = None, embedding: Any = None,
    ) -> Any:  # fmt: skip
        parts = {
            "decoder_input": decoder_input,
            "extra": extra,
            "list": nested["list"][0],
            "pack": nested["pack"].inner,
        }
        for name, part in parts.items():
            entered[name] += 1
            hidden_states = hidden_states + part
        return base.forward(
            self, input_ids=input_ids, position_ids=position_ids, hidden_states=hidden_states,
            attention_mask=attention_mask, rotary_pos_emb=rotary_pos_emb, embedding=embedding,
        )  # fmt: skip

    return type(base.__name__, (base,), {"forward": forward})


def checks(world: World) -> dict[str, Any]:
    """Which of the sources of its arguments got a gradient, and that the trunk and MTP got theirs."""
    postprocess: Any = importlib.import_module("verl_mtp_plugin.training.postprocess")
    entered: collections.Counter[str] = collections.Counter()
    found: dict[str, Any] = {}
    mtp: dict[bool, dict[str, torch.Tensor]] = {}
    original = postprocess.mtp_hidden_states
    for detach in (False, True):
        model = world.asked(detach_encoder=detach)
        model.mtp.__class__ = block_with_more(model.mtp, entered)
        sources = {name: torch.full((1,), 0.1, requires_grad=True) for name in ("extra", "list", "pack")}
        parts = {name: source * 1.0 for name, source in sources.items()}
        more = {"extra": parts["extra"], "nested": {"list": [parts["list"]], "pack": Pack(parts["pack"])}}
        postprocess.mtp_hidden_states = lambda model, call, more=more, **how: original(
            model, {**call, "extra_block_kwargs": more}, **how
        )
        try:
            gradients = world.train(model, main=1.0).gradients
        finally:
            postprocess.mtp_hidden_states = original
        found["detached" if detach else "attached"] = {n: source.grad is not None for n, source in sources.items()}
        mtp[detach] = {name: gradient for name, gradient in gradients.items() if is_mtp(name)}
        plain = world.plain(main=1.0).gradients
        found[f"trunk_as_without_mtp_{detach}"] = all(torch.equal(gradients[name], plain[name]) for name in plain)
    found["same_mtp_gradients"] = max(float((mtp[True][n] - mtp[False][n]).abs().max()) for n in mtp[True])
    return {**found, "entered": entered}
