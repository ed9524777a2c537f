"""Fused log-prob kernels beside MTP, through verl's real engine; the GPU's part is benchmarks/gpu_fused.py."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import pytest

from tests.contract import stacks
from verl_mtp_plugin.training.fused import memory as fused_memory

from .conftest import MARK, RunStack, results

#: megatron-core has the hook that the kernels need from 0.18 on.
WITH_HOOK = stacks.MEGATRON_CORE[stacks.MEGATRON_CORE.index("0.18.2") :]


@functools.cache
def run(case: str, megatron_core: str, verl: str = stacks.VERL[-1]) -> dict[str, Any]:
    """What the worker saw."""
    releases = (("verl", verl), ("megatron-core", megatron_core), ("mbridge", stacks.MBRIDGE[-1]))
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_") or k == stacks.LAYERS_VARIABLE}
    env |= {"PYTHONPATH": os.pathsep.join(str(stacks.layer(*r)) for r in releases), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.stack.fused_worker", folder, case]
        done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith(MARK))
    found: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return found


def close(found: Any, expected: Any, relative: float = 1e-3) -> bool:
    return bool(found == pytest.approx(expected, rel=relative, abs=1e-6))


@pytest.mark.parametrize("megatron_core", WITH_HOOK)
def test_mtp_trains_beside_fused_kernels(megatron_core: str) -> None:
    fused, plain = run("fused", megatron_core), run("plain", megatron_core)
    # The labels, the mask and everything else reach the model as without the kernels.
    assert fused["train"]["inputs"] == plain["train"]["inputs"]
    assert all(given["labels"] and given["loss_mask"] for given in fused["train"]["inputs"])
    assert fused["train"]["kernel_calls"] == len(fused["train"]["inputs"]) > 0
    assert plain["train"]["kernel_calls"] == 0
    # Three bf16 steps: loss, MTP loss, gradient norm, and how far each tensor moved.
    for step, expected in zip(fused["steps"], plain["steps"], strict=True):
        assert close(step, expected)
    assert fused["change"].keys() == plain["change"].keys()
    for name, size in plain["change"].items():
        assert close(fused["change"][name], size, relative=5e-3), name
    heads = [name for name in plain["change"] if "mtp_layers" in name]
    assert heads
    assert all(fused["change"][name] > 0 for name in heads)
    # The main projection is not run beside the kernel.
    assert plain["train"]["head_calls"] - fused["train"]["head_calls"] == len(plain["train"]["inputs"])


@pytest.mark.parametrize("megatron_core", WITH_HOOK)
def test_log_probs_need_no_logits(megatron_core: str) -> None:
    fused, plain = run("fused", megatron_core), run("plain", megatron_core)
    assert (plain["infer"]["head_calls"], plain["infer"]["kernel_calls"]) == (1, 0)
    assert (fused["infer"]["head_calls"], fused["infer"]["kernel_calls"]) == (0, 1)
    for row, expected in zip(fused["log_probs"], plain["log_probs"], strict=True):
        assert close(row, expected, relative=1e-5)


def test_a_temperature_per_sample_takes_the_plain_path() -> None:
    fused, plain = run("fused", "0.18.2"), run("plain", "0.18.2")
    assert (fused["uniform"]["kernel_calls"], fused["per_sample"]["kernel_calls"]) == (1, 0)
    for case in ("uniform", "per_sample"):
        for row, expected in zip(fused[case]["log_probs"], plain[case]["log_probs"], strict=True):
            assert close(row, expected, relative=1e-5)
    assert fused["uniform"]["log_probs"] != fused["per_sample"]["log_probs"] != fused["log_probs"]


def test_mtp_that_is_not_trained_stays_as_it_is() -> None:
    fused, plain = run("fused_untrained", "0.18.2"), run("plain_untrained", "0.18.2")
    assert fused["train"]["kernel_calls"] > 0
    assert fused["train"]["head_calls"] == 0
    for found in (fused, plain):
        sizes = {name: size for name, size in found["change"].items() if "mtp_layers" in name}
        assert set(sizes.values()) == {0.0}
    for step, expected in zip(fused["steps"], plain["steps"], strict=True):
        assert close([step[0], step[2]], [expected[0], expected[2]])


@pytest.mark.parametrize(
    ("verl", "megatron_core", "why"),
    [
        (stacks.VERL[-1], "0.16.1", fused_memory.OLD_MEGATRON_CORE),
        ("0.8.0", "0.18.2", fused_memory.OLD_VERL),
        ("0.7.1", "0.16.1", fused_memory.OLD_VERL),
    ],
)
def test_where_both_cannot_be_had_one_line_says_so(verl: str, megatron_core: str, why: str) -> None:
    found = run("fused", megatron_core, verl)
    assert found["train"]["kernel_calls"] == found["infer"]["kernel_calls"] == 0
    assert all(mtp_loss > 0 for _, mtp_loss, _ in found["steps"])
    (line,) = [text for level, text in found["lines"] if level == "WARNING"]
    assert why in line
    # 4096 tokens in the engine's config, and (2 + 4) bytes for each.
    size = 4096 * found["vocabulary"] * 6 / 2**20
    assert f"4096 x {found['vocabulary']} / 1 x 6 = {size:.2f} MiB" in line


def test_bytes_of_the_logits() -> None:
    # 16k tokens of a vocabulary of 151,680: 4.6 GiB in bf16 and 9.3 GiB in fp32.
    assert fused_memory.logits_bytes(16384, 151_680, 1) / 2**30 == pytest.approx(4.63 + 9.26, abs=0.01)
    assert fused_memory.logits_bytes(16384, 151_680, 8) * 8 == fused_memory.logits_bytes(16384, 151_680, 1)
    assert "tokens x vocabulary / TP x (2 + 4) bytes" in fused_memory.message("why", None, {})


OTHERS = """
    import logging
    from types import SimpleNamespace
    from verl_mtp_plugin.testing import cuda
    cuda.install()
    import verl
    from verl_mtp_plugin.training.fused import engine as fused
    from verl_mtp_plugin.training.fused import memory as fused_memory

    class Lines(logging.Handler):
        def emit(self, record):
            print("=>", record.levelname, fused_memory.OLD_VERL in record.getMessage())

    fused.logger.addHandler(Lines())
    vision = SimpleNamespace(language_model=None)
    print("=>", fused._missing([vision]) == fused_memory.VISION)
    # verl 0.7.1's own actor, twice, then without MTP and without the kernels.
    for config, mtp in (({"use_fused_kernels": True}, {"enable": True}),) * 2:
        fused.note_fused_actor(config, mtp, None)
    fused.note_fused_actor({"use_fused_kernels": True}, None, None)
    fused.note_fused_actor({}, {"enable": True}, None)
"""


def test_vision_models_and_the_actor_of_verl_0_7(run_stack: RunStack) -> None:
    assert results(run_stack(OTHERS, verl=stacks.VERL[-1], megatron_core="0.18.2")) == ["True", "WARNING True"]
