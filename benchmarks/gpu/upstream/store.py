"""One JSON document for each kind of run, written anew after every variant, so that a run can be resumed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

DISTRIBUTIONS: Final = (
    "verl-mtp-plugin", "verl", "megatron-core", "megatron-bridge", "transformer-engine", "sglang", "torch", "ray",
    "transformers", "transferqueue", "flashinfer-python",
)  # fmt: skip
#: Of the variants in tables, however they were run.
ORDER: Final = ("no_mtp", "released", "plugin", "frozen", "trained", "attached", "soft")


def versions() -> dict[str, str]:
    """What is installed, from metadata alone."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The GPUs' names and memory, the driver, and the CPU cores."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        shown = []
    return {"gpus": [line.strip() for line in shown], "cores": os.cpu_count()}


def load(file: Path) -> dict[str, Any]:
    """What an earlier run has written, or nothing."""
    if not file.is_file():
        return {}
    document: dict[str, Any] = json.loads(file.read_text())
    names = sorted(document["variants"], key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    document["variants"] = {name: document["variants"][name] for name in names}
    return document


def as_text(document: dict[str, Any]) -> str:
    """JSON with a line for each list of plain values, so that a column of numbers is one line."""
    text = json.dumps(document, indent=1)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other thread or process of a proof writes into ``folder``, which is made, as long as the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def add(file: Path, about: dict[str, Any], name: str, result: dict[str, Any]) -> None:
    """Put one variant's result beside those that ``file`` has."""
    with alone(file.parent):
        document = load(file)
        # One variant may run in an environment that has less.
        document.update(about, versions={**document.get("versions", {}), **versions()}, hardware=hardware())
        document.setdefault("variants", {})[name] = result
        beside = file.with_suffix(".tmp")
        beside.write_text(as_text(document))
        beside.replace(file)
