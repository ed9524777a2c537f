"""Start the processes of a release, watch them, and put together what they found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runner import environment
from ..stacks import ROOT, Cell
from .layouts import BY_NAME, PROCESSES

#: A check that writes nothing for so long hangs. Starting takes longest.
STALL_S = 120.0
#: How long a process may outlive the other's failure.
GRACE_S = 5.0


class PairError(RuntimeError):
    """The processes ended before they could be asked anything."""


def run(release: str, directory: Path) -> dict[str, Any]:
    """The outcomes of all layouts on a megatron-core release, from ``directory`` or from new processes.

    Returns:
        ``versions``, and ``layouts``: outcomes by layout and check, each with ``ok`` and ``detail``.
    """
    target = directory / f"parallel_megatron-core-{release}.json"
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.tmp")  # so that nobody reads half a file
        partial.write_text(json.dumps(collect(release), indent=1))
        partial.rename(target)
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def collect(release: str) -> dict[str, Any]:
    """All layouts; where processes hang or die, new ones go on with the next layout."""
    left = list(BY_NAME)
    result: dict[str, Any] = {"versions": {}, "layouts": {}}
    while left:
        lines, ended = pair(release, "--layouts", ",".join(left))
        if not lines:
            raise PairError(ended)
        result["versions"] = lines[0]["versions"]
        for line in lines:
            if "check" in line:
                outcome = {"ok": line["ok"], "detail": line["detail"]}
                result["layouts"].setdefault(line["layout"], {})[line["check"]] = outcome
        if not ended:
            break
        layout, name = next((line["started"] for line in reversed(lines) if "started" in line), (left[0], "start"))
        result["layouts"].setdefault(layout, {})[name] = {"ok": False, "detail": ended}
        left = left[left.index(layout) + 1 :]
    return result


def pair(release: str, *arguments: str, stall_s: float = STALL_S) -> tuple[list[dict[str, Any]], str]:
    """Run the worker's processes.

    Returns:
        What rank 0 wrote down, and how they ended if not well.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        outs = [Path(folder) / f"rank{rank}" for rank in range(PROCESSES)]
        command = [sys.executable, "-m", "tests.contract.parallel.worker", "--megatron-core", release, *arguments]
        processes = []
        for rank, out in enumerate(outs):
            place = {"RANK": rank, "WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables = environment(Cell("none", release)) | {name: str(value) for name, value in place.items()}
            with out.with_suffix(".log").open("w") as log:
                processes.append(
                    subprocess.Popen([*command, "--out", str(out)], cwd=ROOT, env=variables, stdout=log, stderr=log)
                )
        ended = _watch(processes, outs[0], stall_s)
        if ended:
            ended += "".join(f"\nrank {rank}: {_tail(out)}" for rank, out in enumerate(outs))
        text = outs[0].read_text() if outs[0].exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")], ended


def _watch(processes: Sequence[subprocess.Popen[bytes]], out: Path, stall_s: float) -> str:
    """Wait for all. Ends them, and says so, when one has failed or nothing is written any more."""
    size, seen = 0, time.monotonic()
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(0.1)
            if any(process.returncode for process in processes):
                time.sleep(GRACE_S)
                break
            now = out.stat().st_size if out.exists() else 0
            if now != size:
                size, seen = now, time.monotonic()
            if time.monotonic() - seen > stall_s:
                return f"hangs: nothing happened for {stall_s:.0f} s"
        codes = [process.poll() for process in processes]
        return f"ended with exit status {codes}" if any(codes) else ""
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _tail(out: Path) -> str:
    return out.with_suffix(".log").read_text(errors="replace")[-1500:]
