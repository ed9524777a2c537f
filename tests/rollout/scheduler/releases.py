"""Which releases the tests in this directory run on, and their processes. Each process answers all questions once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.contract import stacks
from tests.rollout.answers import shared
from tests.stack.conftest import results

#: Layers that the tests demand: what the verl releases pin, and all with weight-update sessions.
PINNED: Final = stacks.SGLANG
#: Others that the tests know; they run where a layer of them has been made.
KNOWN: Final = ("0.5.20",)
#: Releases in which SGLang's MiMo drafter can be built without a GPU.
MIMO: Final = ("0.5.8", "0.5.12.post1")
#: verl, SGLang, and the drafter in front of which verl's adapter is put.
ADAPTERS: Final = tuple(
    (verl, sglang, "mimo" if sglang in MIMO else "plain")
    for verl, sglang in (*stacks.SGLANG_PINS.items(), *((stacks.VERL[-1], later) for later in stacks.SGLANG_LATER))
)
#: The newest verl with what it pins, and with the newest SGLang.
PIN, LATEST = ADAPTERS[len(stacks.SGLANG_PINS) - 1], ADAPTERS[-1]


def _made(version: str) -> bool:
    base = os.environ.get(stacks.LAYERS_VARIABLE)
    return base is not None and (Path(base) / f"sglang-{version}").is_dir()


SGLANG: Final = (*PINNED, *(version for version in KNOWN if _made(version)))


@shared
def ask(worker: str, *arguments: str, **releases: str) -> Any:
    """What a module of this directory prints with these releases: ``ask("drafter_worker", sglang="0.5.8")``."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    paths = [str(stacks.layer(*release)) for release in releases.items()]
    env |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "VERL_USE_EXTERNAL_PLUGINS": "none"}
    command = [sys.executable, "-W", "ignore", "-m", f"tests.rollout.scheduler.{worker}", *arguments]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(results(done)[0])
