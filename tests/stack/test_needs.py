"""Each thing that a patch calls is taken away, renamed or changed in the real packages: it is never applied then."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.contract import stacks

#: Releases together, and some of the patches that are tried with them.
STACKS: dict[str, tuple[dict[str, str], set[str]]] = {
    "sglang 0.5.6": (
        {"verl": "0.7.1", "megatron-core": "0.15.3", "mbridge": "0.15.1", "sglang": "0.5.6"},
        {"training.postprocess.gpt_model", "training.legacy_actor.forward_backward_batch", "rollout.sglang.adapter"},
    ),
    "sglang 0.5.12": (
        {"verl": "0.9.1", "megatron-core": "0.18.2", "mbridge": "0.15.1", "sglang": "0.5.12.post1"},
        {
            "training.fused.engine",
            "training.packed_roll",
            "rollout.sglang.memory.release",
            "bridge.mbridge_mimo.layer_spec",
        },
    ),
    "sglang 0.5.21": (
        {"verl": "0.9.1", "megatron-core": "0.19.2", "sglang": "0.5.21"},
        {"training.grad_clip.chained", "rollout.sglang.adapter", "bridge.built", "bridge.dist_weights"},
    ),
    "megatron-bridge 0.6.2": (
        {"verl": "0.9.1", "megatron-core": "0.19.2", "megatron-bridge": "0.6.2"},
        {"bridge.load_megatron_bridge", "bridge.export_megatron_bridge.tasks", "bridge.save_megatron_bridge"},
    ),
}


@functools.cache
def run(stack: str) -> dict[str, Any]:
    """What the worker found."""
    releases, _ = STACKS[stack]
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    env |= {
        "PYTHONPATH": os.pathsep.join(str(stacks.layer(*release)) for release in releases.items()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.stack.needs_worker", *releases]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("stack", STACKS)
def test_no_patch_is_applied_without_something_that_it_calls(stack: str) -> None:
    assert run(stack)["wrong"] == []


@pytest.mark.parametrize("stack", STACKS)
def test_the_patches_were_tried(stack: str) -> None:
    counts = run(stack)["counts"]
    assert STACKS[stack][1] <= counts.keys()
    assert counts.get("training.postprocess.gpt_model", 0) > 30
    assert sum(counts.values()) > 200
