"""Runs the workers of the tests of weights, each once, on the releases that they ask for."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract import stacks
from tests.stack.conftest import results


@dataclass(frozen=True)
class Stack:
    """What a process runs on."""

    verl: str
    megatron_core: str
    bridge: str = "mbridge"
    release: str = stacks.MBRIDGE[-1]

    def __str__(self) -> str:
        return f"verl-{self.verl}_megatron-core-{self.megatron_core}_{self.bridge}-{self.release}"

    @property
    def hugging_face(self) -> str:
        """Where verl puts a Hugging Face folder in a checkpoint."""
        return "huggingface" if self.verl < "0.9" else "model/huggingface"

    @property
    def model(self) -> str:
        """Where it puts a distributed checkpoint of the model."""
        return "dist_ckpt" if self.verl < "0.9" else "model/dist_ckpt"

    @property
    def label(self) -> str:
        return f"{self.bridge} {self.release}"

    def start(self, module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """One process, on the CPU."""
        releases = (("verl", self.verl), ("megatron-core", self.megatron_core), (self.bridge, self.release))
        env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
        env |= {"PYTHONPATH": os.pathsep.join(str(stacks.layer(*r)) for r in releases), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-m", f"tests.bridges.{module}", *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=stacks.ROOT, env=env | environment, **pipes)


#: verl 0.7.1's and 0.9's checkpoints differ, and mbridge changes with neither.
STACKS = (
    Stack("0.7.1", stacks.MBRIDGE_CORE),
    Stack(stacks.VERL[-1], stacks.MBRIDGE_CORE),
    *(Stack(verl, core, "megatron-bridge", release) for verl, core, release in stacks.WITH_MEGATRON_BRIDGE),
)


def answer(process: subprocess.Popen[str], timeout: float = 300) -> dict[str, Any]:
    """What a worker has printed."""
    try:
        out, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-4000:]
    done = subprocess.CompletedProcess(process.args, process.returncode, out, errors)
    found: dict[str, Any] = json.loads(results(done)[0])
    return found


class Runs:
    """What each worker found; run once, whichever of the parallel test processes asks first."""

    def __init__(self, folder: Path) -> None:
        self.base = folder

    def folder(self, stack: Stack) -> Path:
        return self.base / str(stack)

    def __call__(self, stack: Stack, phase: str) -> dict[str, Any]:
        """``phase`` is "train" or "resume", which needs the checkpoint of the former."""
        if phase == "resume":
            self(stack, "train")
        return self._once(f"{stack}_{phase}", lambda: self._run(stack, phase))

    def _run(self, stack: Stack, phase: str) -> Any:
        return answer(stack.start("weights.worker", str(self.folder(stack)), stack.bridge, phase))

    def ranks(self, stack: Stack, layout: str, module: str = "weights.ranks_worker") -> list[dict[str, Any]]:
        """What two ranks found. A hang ends in an error after a while."""
        name = f"{stack}_{layout}"
        found: list[dict[str, Any]] = self._once(name, lambda: self._run_ranks(stack, layout, module))
        return found

    def _run_ranks(self, stack: Stack, layout: str, module: str) -> Any:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        arguments = (module, str(self.base / f"{stack}-{layout}"), stack.bridge, layout)
        processes = [stack.start(*arguments, RANK=rank, LOCAL_RANK=rank, **common) for rank in "01"]
        return [answer(process, timeout=200) for process in processes]

    def _once(self, name: str, run: Any) -> Any:
        file = self.base / f"{name}.json"
        with open(self.base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                file.write_text(json.dumps(run()))
        return json.loads(file.read_text())


def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all parallel test processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "weights"
    folder.mkdir(exist_ok=True)
    return folder
