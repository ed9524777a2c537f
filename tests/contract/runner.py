"""Run cells in processes of their own, each once: what is already in the results directory is read, not run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .stacks import ROOT, Cell, python_path

#: Where test_matrix leaves one JSON per cell and mode, for ``generate --check --from``.
OUT_VARIABLE = "VERL_MTP_CONTRACT_OUT"
TIMEOUT_S = 600
MODES = ("on", "off")  # the plugin


class CellError(RuntimeError):
    """A cell's process did not deliver a result."""


def result_file(directory: Path, cell: Cell, plugin: str) -> Path:
    return directory / f"{cell}_plugin-{plugin}.json"


def run(cell: Cell, plugin: str, directory: Path) -> dict[str, Any]:
    """The result of a cell with the plugin ``on`` or ``off``, from ``directory`` or from a new process.

    Raises:
        CellError: the process failed; the message ends with what it wrote last.
    """
    target = result_file(directory, cell, plugin)
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.tmp")  # so that nobody reads half a file
        command = [
            sys.executable, "-m", "tests.contract.cell", "--verl", cell.verl, "--megatron-core", cell.megatron_core,
            "--plugin", plugin, "--json", str(partial),
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env=environment(cell), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode or not partial.exists():
            raise CellError(f"{cell}, plugin {plugin}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        partial.rename(target)
    result: dict[str, Any] = json.loads(target.read_text())
    return result


def environment(cell: Cell) -> dict[str, str]:
    """The caller's environment without any switch of verl's plugins or ours, and the cell's PYTHONPATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VERL_", "PYTHONPATH"))}
    return {**kept, "PYTHONPATH": python_path(cell), "OMP_NUM_THREADS": "1"}


def failing(result: dict[str, Any], *kinds: str) -> dict[str, str]:
    """Detail by name of the checks of these kinds that failed."""
    return {check["name"]: check["detail"] for check in result["checks"] if check["kind"] in kinds and not check["ok"]}
