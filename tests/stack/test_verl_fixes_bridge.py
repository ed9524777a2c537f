"""MTP that is disabled stays disabled with the real Megatron-Bridge, which reads the Hugging Face config by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract import stacks

from .conftest import results

#: Releases of verl, Megatron-Bridge and megatron-core that import together. verl 0.8.0 needs Megatron-Bridge >= 0.5.
STACKS = tuple(
    (verl, release, stacks.BRIDGE_CORES[release])
    for verl, release in (("0.7.1", "0.3.1"), ("0.7.1", "0.4.2"), (stacks.VERL[-1], "0.4.2"))
)
BUILT = {"depths": 1, "built": True}
NOT_BUILT = {"depths": None, "built": False}


def run(folder: Path, verl: str, bridge: str, megatron_core: str, mode: str) -> dict[str, Any]:
    releases = (("verl", verl), ("megatron-bridge", bridge), ("megatron-core", megatron_core))
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    env |= {"PYTHONPATH": os.pathsep.join(str(stacks.layer(*release)) for release in releases), "OMP_NUM_THREADS": "1"}
    env |= {"VERL_USE_EXTERNAL_PLUGINS": "none"}  # the worker activates what it needs
    command = [sys.executable, "-W", "ignore", "-m", "tests.stack.verl_fixes_bridge_worker", str(folder), mode]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(results(done)[0])
    return found


@pytest.mark.parametrize(("verl", "bridge", "megatron_core"), STACKS)
def test_disabled_mtp_is_not_built(tmp_path: Path, verl: str, bridge: str, megatron_core: str) -> None:
    found = run(tmp_path, verl, bridge, megatron_core, "on")
    assert (found["enabled"], found["disabled"]) == (BUILT, NOT_BUILT)
    assert found.get("legacy") == ({"actor": 1, "critic": None} if verl == "0.7.1" else None)


def test_without_the_patch_it_is_built(tmp_path: Path) -> None:
    found = run(tmp_path, *STACKS[1], "bare")
    assert found["enabled"] == found["disabled"] == BUILT
    assert found["legacy"] == {"actor": 1, "critic": 1}
