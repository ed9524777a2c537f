"""Start a stack's two processes, watch them, and read what they found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from tests.contract.stacks import ROOT, layer

from .cells import PROCESSES, Stack, cases

TIMEOUT_S = 300.0
#: How long a process may outlive the other's failure.
GRACE_S = 5.0


class WorkerError(RuntimeError):
    """The processes delivered nothing."""


@cache
def run(stack: Stack, texts: tuple[str, ...] = (), others: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    """``decisions`` of the plugin's patches, and the outcomes by case, from one run for all tests of a process.

    Args:
        stack: the bridge and its megatron-core.
        texts: cases; all of the stack's by default.
        others: further layers, in front of what the environment has.
    """
    with tempfile.TemporaryDirectory() as folder:
        ended = _wait(_start(stack, Path(folder), texts or cases(stack), others))
        outcomes = Path(folder) / "outcomes.json"
        if ended or not outcomes.exists():
            logs = "".join(f"\nrank {rank}: {_log(Path(folder), rank)}" for rank in range(PROCESSES))
            raise WorkerError(f"{stack}: {ended}{logs}")
        found: dict[str, Any] = json.loads(outcomes.read_text())
        return found


def _start(
    stack: Stack, folder: Path, texts: tuple[str, ...], others: tuple[tuple[str, str], ...]
) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    releases = (*others, (stack.bridge, stack.version), ("megatron-core", stack.megatron_core))
    layers = [layer(*release) for release in releases]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VERL_", "PYTHONPATH"))}
    kept |= {"PYTHONPATH": os.pathsep.join(map(str, layers)), "OMP_NUM_THREADS": "1"}
    kept |= {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.bridges.roundtrip.worker"]
    command += [stack.bridge, stack.version, stack.megatron_core, str(folder), *texts]
    processes = []
    for rank in range(PROCESSES):
        with (folder / f"{rank}.log").open("w") as log:
            environment = kept | {"RANK": str(rank)}
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return processes


def _wait(processes: list[subprocess.Popen[bytes]]) -> str:
    """Wait for all; "" if all went well. Ends the others when one has failed, and all when time is up."""
    until = time.monotonic() + TIMEOUT_S
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(0.1)
            if any(process.returncode for process in processes):
                time.sleep(GRACE_S)
                break
            if time.monotonic() > until:
                return f"not done after {TIMEOUT_S:.0f} s"
        codes = [process.poll() for process in processes]
        return f"ended with exit status {codes}" if any(codes) else ""
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _log(folder: Path, rank: int) -> str:
    return (folder / f"{rank}.log").read_text(errors="replace")[-3000:]
