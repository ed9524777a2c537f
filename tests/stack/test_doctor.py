"""``verl-mtp doctor`` on real installations."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.contract.stacks import MBRIDGE, MEGATRON_CORE, SGLANG, VERL, VLLM

from .conftest import RunStack

CALL = """
    import sys
    from verl_mtp_plugin.cli.app import main
    try:
        main(["doctor", *{arguments!r}])
    finally:
        print("torch" in sys.modules, file=sys.stderr)
"""
STACK = {"verl": VERL[-1], "megatron_core": "0.18.2", "mbridge": MBRIDGE[-1]}


def doctor(run_stack: RunStack, *arguments: str, **what: Any) -> subprocess.CompletedProcess[str]:
    return run_stack(CALL.format(arguments=arguments), check=False, **what)


def test_versions_without_importing_torch_in_two_seconds(run_stack: RunStack) -> None:
    begin = time.monotonic()
    done = doctor(run_stack, **STACK)
    assert time.monotonic() - begin < 2
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1] == "False"
    for shown in ("megatron-core", "0.18.2", "tested", "training.postprocess", "armed", "No problem found."):
        assert shown in done.stdout


def test_json(run_stack: RunStack) -> None:
    findings = json.loads(doctor(run_stack, "--json", **STACK).stdout)
    assert findings["status"] == 0
    assert {"name": "verl", "version": VERL[-1], "label": "tested"} in findings["installed"]
    patches = {patch["id"]: patch for patch in findings["report"]["patches"]}
    patch = patches["training.postprocess.gpt_model"]
    assert patch["target"] == "megatron.core.models.gpt.gpt_model:GPTModel._postprocess"
    assert patch["decision"] == "armed"
    assert "#5323" in patch["upstream"]
    assert patch["reason"]


@pytest.mark.parametrize("megatron_core", [MEGATRON_CORE[0], MEGATRON_CORE[-1]])
def test_probe_imports_the_stack_and_decides(run_stack: RunStack, megatron_core: str) -> None:
    done = doctor(run_stack, "--json", "--probe", **{**STACK, "megatron_core": megatron_core})
    findings = json.loads(done.stdout)
    decisions = {patch["id"]: patch["decision"] for patch in findings["report"]["patches"]}
    assert decisions["training.postprocess.gpt_model"] == "applied"
    assert decisions["training.gate"] == "applied"
    assert decisions["job.forward_mode"] == "applied"
    assert findings["problems"] == []


def distributions(folder: Path, **versions: str) -> tuple[Path, ...]:
    """A folder in which these distributions are installed, as far as their metadata says."""
    for name, version in versions.items():
        metadata = folder / f"{name}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return (folder,)


def test_a_tested_rollout_engine_is_labeled(run_stack: RunStack, tmp_path: Path) -> None:
    """No test runs vLLM's own engine, and the label does not say so either."""
    paths = distributions(tmp_path, sglang=SGLANG[-1], vllm=VLLM[-1])
    findings = json.loads(doctor(run_stack, "--json", paths=paths, **STACK).stdout)
    assert {"name": "sglang", "version": SGLANG[-1], "label": "tested"} in findings["installed"]
    assert {"name": "vllm", "version": VLLM[-1], "label": "tested with a stand-in"} in findings["installed"]
    assert (findings["notes"], findings["status"]) == ([], 0)


@pytest.mark.parametrize(("engine", "tested"), [("sglang", SGLANG), ("vllm", VLLM)])
def test_an_untested_rollout_engine_is_a_note(
    run_stack: RunStack, tmp_path: Path, engine: str, tested: tuple[str, ...]
) -> None:
    paths = distributions(tmp_path, **{engine: "99.0"})
    findings = json.loads(doctor(run_stack, "--json", paths=paths, **STACK).stdout)
    assert {"name": engine, "version": "99.0", "label": "untested"} in findings["installed"]
    assert findings["notes"] == [f"{engine} 99.0 is untested; tested are {', '.join(tested)}"]
    assert findings["status"] == 1


def test_what_is_missing_is_a_note_and_status_1(run_stack: RunStack) -> None:
    done = doctor(run_stack, verl=VERL[-1])
    assert done.returncode == 1
    assert "megatron-core is not installed in this environment" in done.stdout.replace("\n", " ")
    assert "neither mbridge nor megatron-bridge is installed" in done.stdout.replace("\n", " ")


def test_a_plugin_kept_out_is_said(run_stack: RunStack) -> None:
    done = doctor(run_stack, VERL_USE_EXTERNAL_PLUGINS="none", **STACK)
    assert done.returncode == 1
    assert "VERL_USE_EXTERNAL_PLUGINS keeps this plugin out" in done.stdout


def test_a_misspelt_mode_is_a_problem_and_status_2(run_stack: RunStack) -> None:
    done = doctor(run_stack, VERL_MTP_PLUGIN="atuo", **STACK)
    assert done.returncode == 2
    assert "VERL_MTP_PLUGIN='atuo'" in done.stdout


def test_console_script_is_installed() -> None:
    script = sys.prefix + "/bin/verl-mtp"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"
