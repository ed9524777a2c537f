"""``verl.trainer.sft_trainer`` as a process, with the plugin as its users have it: installed, and nothing else."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.contract import stacks

from .conftest import results

STEPS = 3
KEYS = {"mtp/loss_depth1", "mtp/top1_acceptance_depth1", "mtp/tokens", "mtp/grad_norm"}
APPLIED = "training.engine_step"  # in the line that the plugin prints when it is active


@dataclass(frozen=True)
class Run:
    """What a finished run left: its output, what the console logger printed of each step, and what to expect."""

    output: str
    steps: list[dict[str, float]]
    expected: dict[str, Any]
    folder: Path


def train(
    folder: Path, bridge: str, release: str, megatron_core: str, verl: str = stacks.VERL[-1], plugin: str = ""
) -> Run:
    """Three steps; ``plugin`` is ``VERL_MTP_PLUGIN``."""
    releases = (("verl", verl), ("megatron-core", megatron_core), (bridge, release))
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    env |= {"PYTHONPATH": os.pathsep.join(str(stacks.layer(*r)) for r in releases), "OMP_NUM_THREADS": "1"}
    env |= {"VERL_MTP_PLUGIN": plugin} if plugin else {}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m"]
    command += ["tests.stack.sft_worker", str(folder), bridge, str(STEPS)]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    steps = [console(line) for line in done.stdout.splitlines() if line.startswith("step:")]
    assert [step.pop("step") for step in steps] == [1, 2, 3]
    return Run(done.stdout + done.stderr, steps, json.loads(results(done)[0]), folder)


def console(line: str) -> dict[str, float]:
    """A line of verl's console logger, ``step:1 - train/loss:3.6 - ...``."""
    pairs = (part.rpartition(":") for part in line.split(" - "))
    return {name: float(value) for name, _, value in pairs}


def assert_mtp_was_trained(run: Run) -> None:
    assert APPLIED in run.output
    for step in run.steps:
        assert set(step) >= KEYS  # by these names, where verl puts train/ before loss, grad_norm and lr alone
        assert all(math.isfinite(step[key]) for key in KEYS)
        assert step["mtp_losses/mtp_1_loss"] == step["mtp/loss_depth1"]
    first, expected = run.steps[0], run.expected["first_step"]
    assert first["train/loss"] == pytest.approx(expected["loss"], rel=5e-4)
    assert first["train/grad_norm"] == pytest.approx(expected["grad_norm"], rel=5e-3)
    assert first["mtp/loss_depth1"] == pytest.approx(expected["mtp/loss_depth1"], rel=5e-4)
    assert first["mtp/grad_norm"] == pytest.approx(expected["mtp/grad_norm"], rel=5e-3)
    assert first["mtp/tokens"] == expected["mtp/tokens"]
    assert sum(step["mtp/tokens"] for step in run.steps) == run.expected["tokens"]
    assert run.steps[-1]["mtp/loss_depth1"] < first["mtp/loss_depth1"]


def assert_mtp_was_saved(folder: Path) -> None:
    [saved] = (folder / "checkpoints" / f"global_step_{STEPS}").rglob("model.safetensors")
    before, after = load_file(folder / "mimo" / "model.safetensors"), load_file(saved)
    assert set(after) == set(before)
    mtp = [name for name in after if "mtp" in name]
    assert len(mtp) == 16
    assert not any(after[name].equal(before[name]) for name in mtp)


@pytest.mark.parametrize("verl", ["0.7.1", "0.8.0", stacks.VERL[-1]])
def test_with_mbridge(tmp_path: Path, verl: str) -> None:
    run = train(tmp_path, "mbridge", stacks.MBRIDGE[-1], stacks.MBRIDGE_CORE, verl)
    assert_mtp_was_trained(run)
    assert_mtp_was_saved(tmp_path)


def test_with_megatron_bridge_and_without_the_plugin(tmp_path: Path) -> None:
    """Megatron-Bridge 0.4.2 on megatron-core 0.17.1 is a pair on which verl trains a MiMo by itself, in its manner."""
    on, off = (train(tmp_path / name, "megatron-bridge", "0.4.2", "0.17.1", plugin=name) for name in ("auto", "off"))
    assert_mtp_was_trained(on)
    assert_mtp_was_saved(on.folder)
    assert APPLIED not in off.output
    for step in off.steps:
        assert not KEYS & set(step)
        assert "mtp_losses/mtp_1_loss" in step
    # The same model on the same data, but MTP's gradients in the policy's norm.
    assert off.steps[0]["train/loss"] == on.steps[0]["train/loss"]
    assert off.steps[0]["train/grad_norm"] > on.steps[0]["train/grad_norm"]
