"""MiMo through the real mbridge, with and without the plugin's mend. Each case runs in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract import stacks
from tests.contract.stacks import ROOT, layer

MBRIDGE = stacks.MBRIDGE[-1]
#: The one the quickstart uses, the first that calls the layer mtp_model_layer, and the newest.
MEGATRON_CORE = (stacks.MBRIDGE_CORE, "0.17.1", stacks.MEGATRON_CORE[-1])
MODEL_TYPE = "bridge.mbridge_model_type"
IDS = {f"bridge.mbridge_mimo.{name}" for name in ("layer_spec", "load", "save", "names")}


def ask(case: str, folder: Path, megatron_core: str = MEGATRON_CORE[0]) -> Any:
    """The worker's answer."""
    layers = [layer("mbridge", MBRIDGE), layer("megatron-core", megatron_core)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, layers)), OMP_NUM_THREADS="1")
    command = [sys.executable, "-W", "ignore", "-m", "tests.bridges.mimo_worker", case, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_without_the_plugin_no_mimo_with_mtp_is_built(tmp_path: Path) -> None:
    assert ask("plain", tmp_path).startswith("ValueError: Invalid spec: TransformerConfig(")


def test_without_the_plugin_nothing_is_built_on_newer_megatron_core(tmp_path: Path) -> None:
    assert ask("plain", tmp_path, "0.17.1").startswith("AttributeError: encoder_and_decoder")


@pytest.mark.parametrize("megatron_core", MEGATRON_CORE)
def test_weights_come_back_bit_for_bit(tmp_path: Path, megatron_core: str) -> None:
    found = ask("round_trip", tmp_path, megatron_core)
    # megatron-core 0.17 removed the member of ModelType that mbridge asks for.
    model_type = "not_needed" if megatron_core == stacks.MBRIDGE_CORE else "applied"
    assert found["decisions"] == dict.fromkeys(IDS, "applied") | {MODEL_TYPE: model_type}
    assert found["missing"] == found["different"] == []
    expected = "transformer_layer" if megatron_core == stacks.MBRIDGE_CORE else "mtp_model_layer"
    assert expected in found["layer_names"]


@pytest.mark.parametrize("megatron_core", MEGATRON_CORE)
def test_megatron_drafts_what_hugging_face_means(tmp_path: Path, megatron_core: str) -> None:
    found = ask("drafts", tmp_path, megatron_core)
    assert found["difference"] < 1e-4 * found["size"]


def test_the_draft_comparison_notices_exchanged_halves(tmp_path: Path) -> None:
    found = ask("drafts_without_swap", tmp_path)
    assert found["difference"] > 0.1 * found["size"]


def test_a_fixed_mbridge_is_left_alone(tmp_path: Path) -> None:
    found = ask("fixed_upstream", tmp_path)
    assert found["decisions"] == dict.fromkeys({*IDS, MODEL_TYPE}, "not_needed")
    assert found["untouched"]


def test_reverting_restores_the_class(tmp_path: Path) -> None:
    assert ask("reverted", tmp_path) == {"changed": True, "restored": True}
