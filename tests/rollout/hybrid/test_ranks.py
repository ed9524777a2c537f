"""Where trainer and rollout share GPUs, the KV cache comes back when every rank has dropped its weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.contract import stacks
from tests.rollout.answers import shared
from tests.rollout.stacks import PINNED, Stack
from tests.stack.conftest import results

#: Releases with verl's own barrier: from 0.9.1 on.
WAIT = stacks.VERL[stacks.VERL.index("0.9.1") :]


def ask(stack: Stack) -> Any:
    """What the ranks say without the plugin, where verl does not wait, and with it."""
    return _ask(stack.path, *(["off"] if stack.verl not in WAIT else []), "on")


@shared
def _ask(path: str, *modes: str) -> Any:
    env = {key: value for key, value in os.environ.items() if not key.startswith("VERL_")}
    env |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "VERL_USE_EXTERNAL_PLUGINS": "none"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.rollout.hybrid.ranks_worker", *modes]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(results(done)[0])


def waited(ranks: Any) -> float:
    """Seconds from the last rank's dropping its weights to the engine's being asked for the cache."""
    return float(ranks[0]["resumed"]["kv_cache"] - max(rank["dropped"] for rank in ranks))


@pytest.mark.parametrize("stack", PINNED, ids=str)
def test_the_cache_is_resumed_when_all_ranks_have_dropped_their_weights(stack: Stack) -> None:
    found = ask(stack)
    assert found["patch"] == "applied"
    assert waited(found["on"]) >= 0
    assert found["on"][0]["resumed"]["weights"] < found["on"][0]["dropped"]  # before anything is sent


@pytest.mark.parametrize("stack", [stack for stack in PINNED if stack.verl not in WAIT], ids=str)
def test_without_the_plugin_it_is_resumed_beside_them(stack: Stack) -> None:
    assert waited(ask(stack)["off"]) < 0
