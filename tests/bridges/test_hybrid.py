"""Nemotron-H through the real Megatron-Bridge: MTP that is disabled is not built, and the model still is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract import stacks
from tests.stack.conftest import results

NO_TIMES_NONE = "TypeError: can't multiply sequence by non-int of type 'NoneType'"
#: Megatron-Bridge, the megatron-core it needs, and what becomes of disabled MTP without the plugin.
STACKS = (
    ("0.4.2", "0.17.1", NO_TIMES_NONE),
    ("0.5.1", "0.18.2", NO_TIMES_NONE),
    ("0.6.2", "0.19.2", {"depths": 1, "built": True}),
)


def run(folder: Path, bridge: str, megatron_core: str, mode: str) -> dict[str, Any]:
    releases = (("verl", stacks.VERL[-1]), ("megatron-bridge", bridge), ("megatron-core", megatron_core))
    paths = [str(stacks.layer(*release)) for release in (*releases, ("mbridge", stacks.MBRIDGE[-1]))]
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    env |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "VERL_USE_EXTERNAL_PLUGINS": "none"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.bridges.hybrid_worker", str(folder), mode]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(results(done)[0])
    return found


@pytest.mark.parametrize(("bridge", "megatron_core", "released"), STACKS)
def test_disabled_mtp_is_not_built(tmp_path: Path, bridge: str, megatron_core: str, released: Any) -> None:
    found = run(tmp_path, bridge, megatron_core, "on")
    assert found == {"enabled": {"depths": 1, "built": True}, "disabled": {"depths": None, "built": False}}


@pytest.mark.parametrize(("bridge", "megatron_core", "released"), STACKS)
def test_without_the_patch(tmp_path: Path, bridge: str, megatron_core: str, released: Any) -> None:
    found = run(tmp_path, bridge, megatron_core, "bare")
    assert found == {"enabled": {"depths": 1, "built": True}, "disabled": released}
