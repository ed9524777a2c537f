"""Start a stack's process and read what it found; and all stacks' answers as a table.

``python -m tests.bridges.names.run`` prints the table, of the stacks that the tests leave out too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from typing import Any

from tests.contract.stacks import ROOT, layer
from tests.stack.conftest import results

from ..roundtrip.cells import Stack
from .cells import BUILT

TIMEOUT_S = 400


@cache
def ask(stack: Stack) -> dict[str, Any]:
    """What the worker found, by family."""
    layers = (layer(stack.bridge, stack.version), layer("megatron-core", stack.megatron_core))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("VERL_", "PYTHONPATH", "NVTE_"))}
    env |= {"PYTHONPATH": os.pathsep.join(map(str, layers)), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", "tests.bridges.names.worker"]
        command += [stack.bridge, stack.version, folder]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(results(done)[0])
    return found


def states(of: dict[str, Any]) -> dict[str, Any]:
    """A family's states that were asked: MTP enabled or disabled, with and without copies in the checkpoint."""
    return {name: cell for name, cell in of.items() if name.startswith(("enabled", "disabled"))}


def main() -> None:
    print("| stack | family | MTP | exported | saved without the plugin | saved with it |\n|---|---|---|---|---|---|")
    for stack in BUILT:
        for family, of in ask(stack).items():
            for state, cell in states(of).items():
                row = f"| {str(stack).replace('_', ', ')} | {family} | {state} |"
                if isinstance(cell, str) or "refused" in cell:
                    print(f"{row} {cell if isinstance(cell, str) else 'refused'} | | |")
                else:
                    shown = (cell["with"]["export"], cell["without"]["saved"], cell["with"]["saved"])
                    print(row, *(f"{x.partition(':')[0] if isinstance(x, str) else len(x)} |" for x in shown))


if __name__ == "__main__":
    main()
