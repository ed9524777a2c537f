"""The chunked loss on two ranks, and inside real GPTModels: each in processes of its own, against the references."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract import stacks
from tests.contract.stacks import ROOT, layer

#: verl's patch body has a branch for the one, and calls process_mtp_loss on the other.
MEGATRON_CORE = ("0.16.1", stacks.MEGATRON_CORE[-1])
EXAMPLES = 25


def start(module: str, *arguments: str, path: str = "") -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed.

    Raises:
        AssertionError: with the end of its errors, if it failed.
    """
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-4000:]
    return output


def test_two_tensor_parallel_ranks(tmp_path: Path) -> None:
    ranks = [start("tests.stack.loss_group_worker", str(rank), str(tmp_path / "meet")) for rank in range(2)]
    assert [finish(rank).split()[0] for rank in ranks] == ["180", "180"]


@pytest.mark.parametrize("megatron_core", MEGATRON_CORE)
def test_in_a_model(megatron_core: str) -> None:
    path = str(layer("megatron-core", megatron_core))
    printed = finish(start("tests.stack.loss_model_worker", megatron_core, str(EXAMPLES), path=path))
    assert int(printed.split()[0]) >= EXAMPLES
