"""The TransformerEngine stand-ins compute what Megatron's own layers do, on one rank and on two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.contract.stacks import MEGATRON_CORE, ROOT, layer


def ask(worker: str, megatron_core: str, ranks: int = 1) -> list[Any]:
    """The answer of every rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = dict(
        os.environ,
        PYTHONPATH=str(layer("megatron-core", megatron_core)),
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


@pytest.mark.parametrize("megatron_core", MEGATRON_CORE)
def test_transformer_engine_specs_equal_local_specs(megatron_core: str) -> None:
    (found,) = ask("te_specs_worker", megatron_core)
    assert found["names_differ"] == []
    assert found["hidden"] < 1e-5
    assert found["gradients"] < 1e-4


def test_two_context_parallel_ranks_compute_what_one_does() -> None:
    for found in ask("te_context_worker", "0.16.1", ranks=2):
        assert max(found.values()) < 1e-5, found
