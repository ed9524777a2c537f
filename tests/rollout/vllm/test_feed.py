"""A drafter of vLLM's that nobody feeds: verl's real ``ServerAdapter``, ``vLLMHttpServer`` and worker extension."""

from __future__ import annotations

from typing import Any

import pytest

from .processes import PAIRS, cases

PLAIN = ["collective_rpc", "clear_kv_cache", "set_global_steps"]
UNFED = (
    "WeightSyncError: verl-mtp-plugin: found replica 2: MTP is trained (mtp.enable_train=True), and the trainer sent "
    "none of its tensors (names that begin with model.mtp_layers.); expected a drafter with the trainer's MTP weights"
)
RANDOM = (
    "WeightSyncError: verl-mtp-plugin: found replica 2: the drafter's weights are random: the server has "
    "load_format=dummy, and the trainer sent none of the MTP tensors (names that begin with model.mtp_layers.);"
)
ASKED = [*PLAIN, "mtp_load_format"]
STREAMS = pytest.mark.parametrize("stream", ["sync", "async"])


def found(verl: str, vllm: str, stream: str, kind: str = "patched") -> dict[str, Any]:
    """What became of each sync, and the calls of the server."""
    return {
        name.removesuffix(f", {stream}"): outcome
        for name, outcome in cases(verl, vllm)[kind]["feed"].items()
        if name.endswith(f", {stream}")
    }


@STREAMS
@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_what_is_trained_must_be_sent(verl: str, vllm: str, stream: str) -> None:
    """By names alone, in mode auto, after the transfer has come to its end, on every rank that receives it."""
    outcomes = found(verl, vllm, stream)
    for name in ("unfed", "unfed base"):
        error, calls = outcomes[name]
        assert error.startswith(UNFED)
        assert calls == PLAIN
    error, calls = outcomes["unfed follower"]
    assert error.startswith(UNFED)
    assert calls == []


@STREAMS
@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_right_syncs_pass(verl: str, vllm: str, stream: str) -> None:
    """With the layers that LoRA wraps; adapters alone; and all there is without MTP."""
    outcomes = found(verl, vllm, stream)
    for name in ("fed", "fed base", "adapters", "nothing came", "off", "frozen random but fed"):
        assert outcomes[name] == ["ok", PLAIN], name


@STREAMS
@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_a_frozen_drafter_must_have_the_checkpoints_weights(verl: str, vllm: str, stream: str) -> None:
    outcomes = found(verl, vllm, stream)
    assert outcomes["frozen"] == ["ok", ASKED]
    error, calls = outcomes["frozen random"]
    assert error.startswith(RANDOM)
    assert calls == ASKED


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_a_frozen_drafter_is_said_once(verl: str, vllm: str) -> None:
    (line,) = cases(verl, vllm)["patched"]["feed"]["said"]
    assert line.startswith("replica 2: the drafter is frozen: mtp.enable_train=False, the trainer sends no MTP tensor")


@STREAMS
@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_as_released_nobody_says_anything(verl: str, vllm: str, stream: str) -> None:
    assert {result for result, _ in found(verl, vllm, stream, "bare").values()} == {"ok"}
    assert cases(verl, vllm)["bare"]["feed"]["said"] == []


@pytest.mark.parametrize(("verl", "vllm"), PAIRS)
def test_a_worker_that_feeds_the_target_alone_is_refused_before_vllm_starts(verl: str, vllm: str) -> None:
    """verl 0.7.1's: its extension of vLLM's worker looks for no drafter."""
    outcomes = dict(cases(verl, vllm)["patched"]["launch"])
    assert outcomes.pop("load_format") == "dummy"
    alone = (
        "UnsupportedError: verl-mtp-plugin: found a vLLM worker of verl's that hands weights to the target model alone"
    )
    refused = {name: result for name, result in outcomes.items() if result != "went on"}
    assert set(refused) == ({"trained", "frozen random"} if verl == "0.7.1" else set())
    assert all(result.startswith(alone) for result in refused.values())
    bare = dict(cases(verl, vllm)["bare"]["launch"])
    assert (bare.pop("load_format"), set(bare.values())) == ("", {"went on"})
