"""MiMo through verl's real Megatron engine: training, log-probs, checkpoint and export, on every pair that builds it.

Every cell trains the same model on the same problems, once with MTP and once without. What it reports is compared with
plain PyTorch (:mod:`.engine_expected`), with its own run without MTP, and with the other cells, bit for bit.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.contract import stacks

from .conftest import results

STEPS = 3  # as the worker has it
KEYS = {"mtp/loss_depth1", "mtp/top1_acceptance_depth1", "mtp/tokens", "mtp/grad_norm"}
VERLS_KEY = "mtp_losses/mtp_1_loss"
#: Tensors of MiMo's MTP layer: q, k, v with biases, o, three of the MLP, five norms, and the projection.
MTP_TENSORS = 6 + 1 + 3 + 5 + 1
#: bf16 against fp32, relative.
LOSS_TOLERANCE, NORM_TOLERANCE = 5e-4, 5e-3


@dataclass(frozen=True)
class Stack:
    """What one process runs on. ``layout`` is "packed" (no padding) or "padded" ([b, s])."""

    verl: str
    megatron_core: str
    bridge: str = "mbridge"
    release: str = stacks.MBRIDGE[-1]
    layout: str = "packed"
    clip_grad: str = ""
    per_token: bool = False

    def __str__(self) -> str:
        parts = f"verl-{self.verl}", f"megatron-core-{self.megatron_core}", f"{self.bridge}-{self.release}"
        more = [self.clip_grad, "per_token" if self.per_token else ""]
        return "_".join([*parts, self.layout, *filter(None, more)])

    @property
    def saved(self) -> str:
        """What a checkpoint holds: all of it, but for what this pair cannot save without a GPU or at all."""
        if self.megatron_core == "0.15.3":
            return "model,extra"  # not the state of torch's Adam, which stands in for TransformerEngine's
        if self.verl == "0.7.1" and self.megatron_core >= "0.18":
            return "model,optimizer"  # TransformerConfig has got enumerations that verl 0.7.1 cannot write as JSON
        return "model,optimizer,extra"


def mbridge(verl: str, megatron_core: str) -> Stack:
    """megatron-core 0.15.3 trains no MTP on packed sequences."""
    return Stack(verl, megatron_core, layout="padded" if megatron_core == "0.15.3" else "packed")


REFERENCE = Stack(stacks.VERL[-1], stacks.MBRIDGE_CORE)
PADDED = replace(REFERENCE, megatron_core="0.18.2", layout="padded")
VERL = tuple(version for version in stacks.VERL if version != "0.9.0")
#: Each verl with a Megatron-Bridge that imports with it, and the newest with all others on which MiMo is built.
MEGATRON_BRIDGE = (
    *(Stack(verl, core, "megatron-bridge", release) for verl, core, release in stacks.WITH_MEGATRON_BRIDGE),
    *(
        Stack(stacks.VERL[-1], stacks.BRIDGE_CORES[release], "megatron-bridge", release)
        for release in stacks.MEGATRON_BRIDGE[1:-1]
    ),
)
CELLS = (*(mbridge(verl, core) for verl in VERL for core in stacks.MEGATRON_CORE), PADDED, *MEGATRON_BRIDGE)


def run(stack: Stack, folder: Path) -> subprocess.CompletedProcess[str]:
    releases = (("verl", stack.verl), ("megatron-core", stack.megatron_core), (stack.bridge, stack.release))
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    env |= {"PYTHONPATH": os.pathsep.join(str(stacks.layer(*r)) for r in releases), "OMP_NUM_THREADS": "1"}
    if stack.clip_grad:
        env["VERL_MTP_PLUGIN_CLIP_GRAD"] = stack.clip_grad
    command = [sys.executable, "-W", "ignore", "-m", "tests.stack.engine_worker"]
    command += [str(folder), stack.bridge, stack.layout, stack.saved, *(["per_token"] if stack.per_token else [])]
    return subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)


class Results:
    """What each stack's process found; run once, whichever of the parallel test processes asks first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, stack: Stack) -> dict[str, Any]:
        file = self.folder / f"{stack}.json"
        with open(self.folder / f"{stack}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                done = run(stack, self.folder / str(stack))
                assert done.returncode == 0, done.stderr[-4000:]
                file.write_text(results(done)[0])
        found: dict[str, Any] = json.loads(file.read_text())
        return found


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "engine"
    folder.mkdir(exist_ok=True)
    return Results(folder)


@pytest.mark.parametrize("stack", CELLS, ids=str)
def test_mtp_is_trained_and_the_policy_left_alone(stack: Stack, found: Results) -> None:
    cell = found[stack]
    assert cell["loaded"], "what the bridge loaded and exports is not the checkpoint"
    assert cell["mtp_tensors"] == MTP_TENSORS
    assert cell["mtp_changed"]
    assert cell["policy_changed"], "training without MTP did nothing, so the comparison says nothing"
    assert cell["policy_names_equal"], "without MTP the model has other tensors"
    assert cell["policy_equal"]
    assert cell["log_probs_equal"] == {"before": True, "after": True}
    for step, without in zip(cell["metrics"], cell["policy_metrics"], strict=True):
        assert not KEYS & set(without)
        assert (step["grad_norm"], step["loss"]) == (without["grad_norm"], without["loss"])


@pytest.mark.parametrize("stack", CELLS, ids=str)
def test_no_mtp_layer_runs_while_log_probs_are_computed(stack: Stack, found: Results) -> None:
    calls = found[stack]["mtp_calls"]
    assert calls["inferring"] == 0
    assert calls["training"] > STEPS  # one for each micro-batch, of which some steps have several


@pytest.mark.parametrize("stack", CELLS, ids=str)
def test_metrics_are_those_of_plain_pytorch(stack: Stack, found: Results) -> None:
    cell = found[stack]
    checkpoint = cell["checkpoint"]
    # The first step, and one on the trained weights, whose head drafts better than chance.
    for reported, expected in (
        (cell["metrics"][0], cell["expected"]),
        (checkpoint["next_step"], checkpoint["expected_next_step"]),
    ):
        assert set(reported) == {*KEYS, VERLS_KEY, "grad_norm", "loss"}
        assert reported[VERLS_KEY] == reported["mtp/loss_depth1"]
        assert reported["mtp/tokens"] == expected["mtp/tokens"]
        for key in ("loss", "mtp/loss_depth1"):
            assert reported[key] == pytest.approx(expected[key], rel=LOSS_TOLERANCE)
        for key in ("grad_norm", "mtp/grad_norm"):
            assert reported[key] == pytest.approx(expected[key], rel=NORM_TOLERANCE)
        key = "mtp/top1_acceptance_depth1"  # two close logits may change places in bf16
        assert reported[key] == pytest.approx(expected[key], abs=2 / expected["mtp/tokens"])
    assert checkpoint["next_step"]["mtp/loss_depth1"] < cell["metrics"][0]["mtp/loss_depth1"] - 0.1


@pytest.mark.parametrize("stack", CELLS, ids=str)
def test_a_checkpoint_brings_everything_back(stack: Stack, found: Results) -> None:
    checkpoint = found[stack]["checkpoint"]
    assert checkpoint["moved_on"], "training on changed nothing, so loading says nothing"
    assert checkpoint["restored"]
    assert checkpoint["hugging_face"], "the Hugging Face file differs from what the rollout engine is sent"


@pytest.mark.parametrize("stack", CELLS, ids=str)
def test_all_cells_agree(stack: Stack, found: Results) -> None:
    cell, reference = found[stack], found[PADDED if stack.layout == "padded" else REFERENCE]
    assert cell["metrics"] == reference["metrics"]
    assert cell["weights"] == reference["weights"]


def test_packed_and_padded_sequences_mean_the_same(found: Results) -> None:
    for packed, padded in zip(found[REFERENCE]["metrics"], found[PADDED]["metrics"], strict=True):
        assert packed["mtp/tokens"] == padded["mtp/tokens"]
        assert packed == pytest.approx(padded, rel=1e-3)


def test_clipping_with_the_policy_changes_it(found: Results) -> None:
    """The control: with one norm over everything, as Megatron has it, the comparisons above notice."""
    joint = found[replace(REFERENCE, clip_grad="joint")]
    assert not joint["policy_equal"]
    assert not joint["log_probs_equal"]["after"]
    assert joint["policy_metrics"] == found[REFERENCE]["policy_metrics"]
    first, alone = joint["metrics"][0], joint["policy_metrics"][0]
    assert first["grad_norm"] == pytest.approx(math.hypot(alone["grad_norm"], first["mtp/grad_norm"]), rel=1e-5)


def test_both_normalizations_mean_the_same(found: Results) -> None:
    """calculate_per_token_loss: Megatron sums gradients and divides once, by tokens that verl counts."""
    per_token = found[replace(REFERENCE, per_token=True)]
    assert per_token["policy_equal"]
    for theirs, ours in zip(found[REFERENCE]["metrics"], per_token["metrics"], strict=True):
        assert ours["mtp/tokens"] == theirs["mtp/tokens"]
        assert ours["mtp/loss_depth1"] == pytest.approx(theirs["mtp/loss_depth1"], rel=LOSS_TOLERANCE)
        assert ours["mtp/grad_norm"] == pytest.approx(theirs["mtp/grad_norm"], rel=NORM_TOLERANCE)


def test_packed_sequences_are_refused_where_mtp_would_mix_them(tmp_path: Path) -> None:
    done = run(replace(REFERENCE, megatron_core="0.15.3"), tmp_path)
    assert done.returncode != 0
    assert "found packed sequences with MTP training on megatron-core 0.15.3" in done.stderr
    assert "set actor_rollout_ref.model.use_remove_padding=False" in done.stderr
