"""Asks a worker of this directory, in as many processes of one group as it shall be."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

from tests.contract.stacks import ROOT, layer


def ask(worker: str, megatron_core: str, ranks: int = 1, verl: str | None = None) -> list[Any]:
    """The answer of every rank."""
    layers = [layer("megatron-core", megatron_core), *([layer("verl", verl)] if verl else [])]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(map(str, layers)),
        OMP_NUM_THREADS="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(ranks),
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", f"tests.stack.{worker}"],
            cwd=ROOT,
            env=dict(environment, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    answers = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        answers.append(json.loads(out.splitlines()[-1]))
    return answers
