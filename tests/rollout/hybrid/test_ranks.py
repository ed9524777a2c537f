"""Where trainer and rollout share GPUs, the KV cache comes back when every rank has dropped its weights."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.contract import stacks
from tests.rollout.stacks import PINNED, Stack
from tests.stack.conftest import results

from .ranks_worker import SLOW_S

#: verl's own barrier came with this release.
WAITS = "0.9.1"


@functools.cache
def ask(stack: Stack, mode: str) -> Any:
    env = {key: value for key, value in os.environ.items() if not key.startswith("VERL_")}
    env |= {"PYTHONPATH": stack.path, "OMP_NUM_THREADS": "1", "VERL_USE_EXTERNAL_PLUGINS": "none"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.rollout.hybrid.ranks_worker", mode]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(results(done)[0])


def waited(found: Any) -> float:
    """Seconds from the last rank's dropping its weights to the engine's being asked for the cache."""
    return float(found["ranks"][0]["resumed"]["kv_cache"] - max(rank["dropped"] for rank in found["ranks"]))


@pytest.mark.parametrize("stack", PINNED, ids=str)
def test_the_cache_is_resumed_when_all_ranks_have_dropped_their_weights(stack: Stack) -> None:
    found = ask(stack, "on")
    assert found["patch"] == "applied"
    assert waited(found) >= 0
    assert found["ranks"][0]["resumed"]["weights"] < found["ranks"][0]["dropped"]  # before anything is sent


@pytest.mark.parametrize("stack", [stack for stack in PINNED if stack.verl != WAITS], ids=str)
def test_without_the_plugin_it_is_resumed_beside_them(stack: Stack) -> None:
    assert waited(ask(stack, "off")) < -SLOW_S / 2
