"""One process per release, shared by all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.contract import stacks
from tests.rollout.answers import shared
from tests.stack.conftest import MARK


@shared
def seen(verl: str) -> dict[str, Any]:
    """What the worker saw in that release."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    env |= {"PYTHONPATH": str(stacks.layer("verl", verl)), "OMP_NUM_THREADS": "1"}
    env |= {"VERL_USE_EXTERNAL_PLUGINS": "none"}  # the worker arms what it needs, when it needs it
    command = [sys.executable, "-W", "ignore", "-m", f"{__package__}.worker"]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = (line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK))
    found: dict[str, Any] = json.loads(line)
    return found
