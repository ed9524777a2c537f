"""The mends of a bridge's conversions can be taken back, and leave a bridge alone that has no need of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.contract.stacks import MBRIDGE, MEGATRON_CORE, ROOT, layer


def test_deepseek_through_mbridge() -> None:
    layers = (layer("mbridge", MBRIDGE[-1]), layer("megatron-core", MEGATRON_CORE[-1]))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, layers)), OMP_NUM_THREADS="1")
    command = [sys.executable, "-W", "ignore", "-m", "tests.bridges.roundtrip.mends_worker"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["changed"] == [True, True]
    assert found["restored"]
    ids = ("bridge.mbridge_rope", "bridge.mbridge_deepseek.config", "bridge.mbridge_deepseek.names")
    assert found["decisions"] == dict.fromkeys(ids, "not_needed")
