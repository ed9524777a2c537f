"""docs/MTP_OFF.md against the code: every patch set is in one of its tables, and what does nothing does nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.contract.stacks import ROOT, VERL, layer

#: What the worker does not call, and what shows that it does nothing.
ELSEWHERE = {
    "job.overlong_log": "test_script_defaults.py",
    "job.withdrawn_option": "test_script_defaults.py",
    "job.engines.new": "test_engines.py: an engine with MTP off is made",
    "job.engines.register": "test_engines.py: a class of another package asks the same question",
    "rollout.vllm.mtp_drain": "a method of ours, which our weight sync alone calls",
    "rollout.vllm.mtp_hold": "a method of ours, which our weight sync alone calls",
    "rollout.weight_sync": "tests/rollout/orders: the orders of verl without MTP",
    "training.engine_step.get_megatron_mtp_loss": "verl asks for the MTP loss with mtp.enable alone",
    "training.legacy_actor.get_megatron_mtp_loss": "verl 0.7.1's actor asks for the MTP loss with an mtp_config alone",
    "training.gate": "verl calls patch_postprocess with mtp.enable alone",
    "training.model_classes.find": "called by patch_postprocess",
    "training.model_classes.detach_encoder": "called beside patch_postprocess",
    "training.overlap.engine": "calls patch_postprocess",
    "training.fused.forward": "test_fused.py: a model without the mark of the engine",
    "rollout.acceptance.server.meta_info": "test_sglang.py: a request without a context of ours",
    "bridge.mbridge_mimo.layer_spec": "mbridge asks for a spec of MTP with mtp_num_layers alone",
    "bridge.mbridge_mimo.names": "mbridge asks for names of MTP parameters with mtp_num_layers alone",
    **{
        f"model_class.megatron.core.models.{name}.request": "a slot for requests, which nobody calls"
        for name in ("hybrid.hybrid_model.HybridModel", "mamba.mamba_model.MambaModel")
    },
}
MTP_MODULE = "megatron.core.transformer.multi_token_prediction:"


def tables() -> tuple[list[str], list[str]]:
    """The ids in both tables: what acts, and what does nothing."""
    text = (ROOT / "docs" / "MTP_OFF.md").read_text()
    acts, nothing = text.split("## What acts")[1].split("## What does nothing")
    columns = [[row.split(" | ")[0] for row in part.splitlines() if row.startswith("| `")] for part in (acts, nothing)]
    first, second = (re.findall(r"`([\w.]+)`", " ".join(column)) for column in columns)
    return first, second


@pytest.fixture(scope="module")
def found() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    layers = (layer("verl", VERL[-1]), layer("megatron-core", "0.18.2"))
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VERL_") or k == "VERL_MTP_LAYERS"}
    environ["PYTHONPATH"] = os.pathsep.join(map(str, layers))
    command = [sys.executable, "-W", "ignore", "-m", "tests.stack.mtp_off_worker"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    results, sets, targets = (json.loads(line[3:]) for line in done.stdout.splitlines() if line.startswith("=> "))
    return results, sets, targets


def test_every_patch_set_is_in_one_table(found: tuple[dict[str, str], ...]) -> None:
    """A new patch set needs a row there: what it does without MTP."""
    acts, nothing = tables()
    listed = [*acts, *nothing]
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == set(found[1].values())


def test_what_does_nothing_calls_upstream_with_what_it_was_given(found: tuple[dict[str, str], ...]) -> None:
    results, sets, targets = found
    _, nothing = tables()
    assert {id: result for id, result in results.items() if result != "same"} == {}
    unreached = {id for id, target in targets.items() if target.startswith(MTP_MODULE)}
    shown = {*results, *ELSEWHERE, *unreached}
    assert {id for id, patch_set in sets.items() if patch_set in nothing} == shown
