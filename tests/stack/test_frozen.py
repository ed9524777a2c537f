"""A frozen trunk, in whole or in part, with activation recompute: MTP trains as without, or the job is refused."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.contract import stacks

from .conftest import results

#: Trained parameters of the trunk that recompute gives no gradient, since its input has none.
REFUSED = {f"mtp_and_last_layer {how}" for how in ("uniform attached", "selective attached", "uniform detached")}


@functools.cache
def run(megatron_core: str) -> dict[str, Any]:
    """What the worker saw under verl 0.9.1."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_") or k == stacks.LAYERS_VARIABLE}
    env |= {"PYTHONPATH": stacks.python_path(stacks.Cell("0.9.1", megatron_core)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.stack.frozen_worker", "0.9.1", megatron_core, "on"]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(results(done)[0])
    return found


@pytest.mark.parametrize("megatron_core", stacks.MEGATRON_CORE)
def test_recompute_changes_no_gradient_whatever_is_frozen(megatron_core: str) -> None:
    found = {case: result for case, result in run(megatron_core)["frozen"].items() if case not in REFUSED}
    assert len(found) == 19
    assert {case: result for case, result in found.items() if not isinstance(result, list)} == {}
    assert max(apart for apart, _ in found.values()) < 1e-5
    assert min(count for _, count in found.values()) >= 4


@pytest.mark.parametrize("megatron_core", stacks.MEGATRON_CORE)
def test_a_trunk_that_would_be_trained_in_part_and_gets_nothing_is_refused(megatron_core: str) -> None:
    found = run(megatron_core)["frozen"]
    for case in REFUSED:
        assert found[case].startswith("UnsupportedError"), found[case]
        assert "decoder.layers.1.mlp.linear_fc1.weight" in found[case]
        assert "recompute_granularity=null" in found[case]


@pytest.mark.parametrize("megatron_core", stacks.MEGATRON_CORE)
def test_nothing_leaves_a_detached_block_by_any_of_its_arguments(megatron_core: str) -> None:
    found = run(megatron_core)["detached"]
    assert found["entered"] == dict.fromkeys(("decoder_input", "extra", "list", "pack"), 2)
    assert set(found["attached"].values()) == {True}
    assert set(found["detached"].values()) == {False}
    assert found["trunk_as_without_mtp_True"]
    assert not found["trunk_as_without_mtp_False"]
    assert found["same_mtp_gradients"] == 0
