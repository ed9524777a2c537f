"""verl's real Megatron engine: unchanged without MTP, and the quickstart."""

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

NEWEST_MBRIDGE = (("megatron-core", stacks.MBRIDGE_CORE), ("mbridge", stacks.MBRIDGE[-1]))


def train_plain(folder: Path, verl: str, family: str, plugin: str) -> dict[str, Any]:
    paths = [stacks.layer(*release) for release in (("verl", verl), *NEWEST_MBRIDGE)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    env |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    if plugin == "off":
        env["VERL_USE_EXTERNAL_PLUGINS"] = "none"
    command = [sys.executable, "-m", "tests.stack.plain_training_worker", str(folder), family, plugin]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(results(done)[0])
    return found


@pytest.mark.parametrize(
    ("verl", "family"), [("0.8.0", "qwen2"), (stacks.VERL[-1], "qwen2"), (stacks.VERL[-1], "mimo")]
)
def test_with_mtp_disabled_training_is_bit_identical(tmp_path: Path, verl: str, family: str) -> None:
    on, off = (train_plain(tmp_path / plugin, verl, family, plugin) for plugin in ("on", "off"))
    assert (on.pop("plugin"), off.pop("plugin")) == (True, False)
    assert on == off
    assert on["weights"] != on["before"]  # three steps did change something
    assert all(norm > 0 for norm in on["grad_norms"])


def test_quickstart(tmp_path: Path) -> None:
    """The example itself, in its half-minute version; its exit status is that of its own checks."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_") or k == stacks.LAYERS_VARIABLE}
    env["PYTHONPATH"] = stacks.quickstart_path()
    script = stacks.ROOT / "examples" / "quickstart" / "run.py"
    command = [sys.executable, str(script), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    written = json.loads((tmp_path / "quickstart.json").read_text())
    assert all(check["passed"] for check in written["checks"])
    assert len(written["checks"]) >= 10
    assert (tmp_path / "quickstart.png").stat().st_size > 20_000
    decisions = {patch["id"]: patch["decision"] for patch in written["patches"]["patches"]}
    assert decisions["training.postprocess.gpt_model"] == "applied"
    assert decisions["bridge.mbridge_mimo.layer_spec"] == "applied"
