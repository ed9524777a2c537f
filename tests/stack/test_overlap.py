"""MTP with overlapped expert parallelism is refused before anything is trained, and without MTP nothing changes."""

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

PAIRS = (("0.7.1", "0.16.1"), ("0.8.0", "0.18.2"), (stacks.VERL[-1], stacks.MEGATRON_CORE[-1]))
PLAN = "TransformerModelChunkSchedulePlan"
KEY = "actor_rollout_ref.actor.megatron.override_transformer_config.overlap_moe_expert_parallel_comm=False"


@functools.cache
def run(verl: str, megatron_core: str, patches: str) -> dict[str, Any]:
    """What the worker saw."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_") or k == stacks.LAYERS_VARIABLE}
    env |= {"PYTHONPATH": stacks.python_path(stacks.Cell(verl, megatron_core)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.stack.overlap_worker", verl, megatron_core, patches]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(results(done)[0])
    return found


@pytest.mark.parametrize(("verl", "megatron_core"), PAIRS)
def test_the_engine_refuses_before_training(verl: str, megatron_core: str) -> None:
    found = run(verl, megatron_core, "on")
    refusal = found["engine_overlap_True"]
    assert refusal.startswith("UnsupportedError: ")
    for part in ("overlap_moe_expert_parallel_comm=True", "mtp_num_layers=1", KEY, "mtp.enable=False"):
        assert part in refusal
    assert not found["asked_overlap_True"]
    # Without the overlap the same call asks for MTP as ever.
    assert (found["engine_overlap_False"], found["asked_overlap_False"]) == ("NoneType", True)


@pytest.mark.parametrize(("verl", "megatron_core"), PAIRS)
def test_a_plan_is_refused_with_mtp_only(verl: str, megatron_core: str) -> None:
    found = run(verl, megatron_core, "on")
    for labels in (False, True):
        refusal = found[f"plan_mtp_1_labels_{labels}"]
        assert refusal.startswith("UnsupportedError: ")
        assert "1F1B schedule plan" in refusal
        assert KEY in refusal
        assert found[f"plan_mtp_None_labels_{labels}"] == PLAN


@pytest.mark.parametrize(("verl", "megatron_core"), PAIRS)
def test_what_the_refusal_stands_on(verl: str, megatron_core: str) -> None:
    """Fails once upstream can do it, which is when the refusal has to go."""
    found = run(verl, megatron_core, "off")
    assert "return_schedule_plan" not in found["forward_step"]
    if megatron_core >= "0.19":  # renamed what verl's last node asks for, with MTP or without
        expected = ["AttributeError: 'PostProcessNode' object has no attribute 'gpt_model'"] * 2
    else:
        # Two rows of 16 tokens: the hidden states are packed to 32, the labels are not.
        sizes = "RuntimeError: The size of tensor a (32) must match the size of tensor b (16)"
        expected = ["AttributeError: 'NoneType' object has no attribute 'clone'", sizes]
    for labels, message in zip((False, True), expected, strict=True):
        assert found[f"plan_mtp_1_labels_{labels}"].startswith(message)
    assert found["plan_mtp_None_labels_True"] == PLAN
