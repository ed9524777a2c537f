"""Run workers with a release of verl, and of SGLang, on PYTHONPATH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from tests.contract import stacks

from ..answers import shared

#: What each verl pins (0.9.0 as 0.8.0), and with the newest verl one that names the counts anew, and the newest.
PAIRS = (
    *((verl, stacks.SGLANG_PINS.get(verl, stacks.SGLANG_PINS["0.8.0"])) for verl in stacks.VERL),
    *((stacks.VERL[-1], release) for release in (stacks.SGLANG_SESSIONS, stacks.SGLANG[-1])),
)


def run(module: str, *arguments: str, layers: tuple[tuple[str, str], ...], given: Any = None) -> Any:
    """The JSON that ``python -m module`` prints as its last line."""
    path = os.pathsep.join(str(stacks.layer(*release)) for release in layers)
    extra = os.environ.get("PYTHONPATH", "")
    process = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=stacks.ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (path, extra)))},
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.strip().splitlines()[-1])


@shared
def server(verl: str, sglang: str) -> Any:
    """See :mod:`.server_worker`."""
    with tempfile.TemporaryDirectory() as folder:
        return run(f"{__package__}.server_worker", folder, layers=(("verl", verl), ("sglang", sglang)))


def trainer(verl: str, steps: list[list[dict[str, Any]]]) -> Any:
    """See :mod:`.trainer_worker`; the same for the same steps."""
    return _trainer(verl, json.dumps(steps))


@shared
def _trainer(verl: str, steps: str) -> Any:
    return run(f"{__package__}.trainer_worker", layers=(("verl", verl),), given=json.loads(steps))
