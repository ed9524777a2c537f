"""The drafter's parameters, sharded by SGLang's own loader over simulated ranks, against the trainer's tensors."""

from __future__ import annotations

from typing import Any

import pytest

from .drafter_worker import LAYOUTS
from .releases import MIMO, ask

#: All parameters of MiMo's drafter but the embedding and the head, which are the target's.
PARAMETERS = [
    "model.final_layernorm.weight",
    "model.hidden_layernorm.weight",
    "model.input_proj.weight",
    "model.mtp_block.input_layernorm.weight",
    "model.mtp_block.mlp.down_proj.weight",
    "model.mtp_block.mlp.gate_up_proj.weight",
    "model.mtp_block.post_attention_layernorm.weight",
    "model.mtp_block.self_attn.o_proj.weight",
    "model.mtp_block.self_attn.qkv_proj.bias",
    "model.mtp_block.self_attn.qkv_proj.weight",
    "model.token_layernorm.weight",
]
HELD, STALE = [len(PARAMETERS), [], []], [0, PARAMETERS, []]


def of(release: str, what: str) -> Any:
    return ask("drafter_worker", sglang=release)[what]


@pytest.mark.parametrize("release", MIMO)
@pytest.mark.parametrize("layout", [f"{ranks} ranks, {heads} heads" for ranks, heads in LAYOUTS])
def test_every_parameter_is_compared_whatever_the_layout(release: str, layout: str) -> None:
    """Held after both syncs; and all of them different when one rank alone keeps the weights of the second."""
    assert of(release, layout)["parameters"] == len(PARAMETERS)
    assert of(release, layout)["results"] == [HELD, HELD, STALE]


@pytest.mark.parametrize("release", MIMO)
@pytest.mark.parametrize("types", ["fp32 sent", "fp32 drafter"])
def test_tensors_are_cast_as_loading_casts_them(release: str, types: str) -> None:
    assert of(release, types)["results"] == [HELD, HELD, STALE]


@pytest.mark.parametrize("release", MIMO)
def test_quantised_parameters_are_named_as_not_compared(release: str) -> None:
    assert of(release, "fp8 drafter")["results"] == [[0, [], PARAMETERS]] * 3


def test_ranks_gather_their_answers() -> None:
    """Two processes of one gloo group: every rank has both ranks' parameters."""
    found = ask("ranks_worker")
    assert found[0] == found[1]
    assert [sorted(rank) for rank in found[0]] == [["own"], ["own"]]
    numels = [rank["own"][0] for rank in found[0]]
    digests = [rank["own"][2] for rank in found[0]]
    assert numels == [2, 2]
    assert digests[0] != digests[1]
