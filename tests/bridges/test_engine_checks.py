"""verl's real engine with the real bridges: models whose MTP is there pass, all others are refused before training."""

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
from tests.stack.conftest import results

#: verl, megatron-core and the bridge.
MBRIDGE = tuple((verl, stacks.MBRIDGE_CORE, "mbridge", stacks.MBRIDGE[-1]) for verl in stacks.VERL)
MEGATRON_BRIDGE = tuple((verl, core, "megatron-bridge", release) for verl, core, release in stacks.WITH_MEGATRON_BRIDGE)
STACKS = (*MBRIDGE, *MEGATRON_BRIDGE)
Stack = tuple[str, str, str, str]
EXPECTED = (
    "; expected a bridge that builds and converts this model's MTP layers, since mtp.enable=True. megatron-bridge does "
    "it from {since} on; none is installed: actor_rollout_ref.actor.megatron.vanilla_mbridge=False. mbridge "
    f"{stacks.MBRIDGE[-1]} does the MTP of "
)


@functools.cache
def ask(stack: Stack, mode: str = "on") -> dict[str, str]:
    verl, core, bridge, release = stack
    releases = {"verl": verl, "megatron-core": core, "mbridge": stacks.MBRIDGE[-1], bridge: release}
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    paths = [str(stacks.layer(*item)) for item in releases.items()]
    env |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "VERL_USE_EXTERNAL_PLUGINS": "none"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", "tests.bridges.engine_checks_worker", folder, bridge, mode]
        done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(results(done)[0])
    return found


@pytest.mark.parametrize("stack", STACKS, ids="-".join)
def test_a_model_whose_mtp_is_there_is_built(stack: Stack) -> None:
    assert ask(stack)["MiMo"] == ask(stack)["MiMo, frozen"] == "built"


@pytest.mark.parametrize("stack", MBRIDGE, ids="-".join)
@pytest.mark.parametrize("trained", ["", ", frozen"])
def test_a_bridge_that_builds_no_mtp_is_refused_before_weights_load(stack: Stack, trained: str) -> None:
    assert ask(stack)[f"GLM-4.5{trained}"].startswith(
        "nothing loaded: UnsupportedError: verl-mtp-plugin: found Glm4MoeForCausalLM (model_type glm4_moe, family "
        f"GLM-4.5) with mbridge {stacks.MBRIDGE[-1]}: GLM4MoEBridge builds this model without MTP layers "
        f"(mtp_num_layers=None){EXPECTED.format(since='0.3.1')}"
    )


@pytest.mark.parametrize("stack", MBRIDGE, ids="-".join)
def test_a_model_that_the_bridge_does_not_know_is_refused(stack: Stack) -> None:
    found = ask(stack)["Qwen3-Next"]
    assert found.startswith(
        "nothing loaded: UnsupportedError: verl-mtp-plugin: found Qwen3NextForCausalLM (model_type qwen3_next, family "
        f"Qwen3-Next) with mbridge {stacks.MBRIDGE[-1]}: it has no bridge class for this model; expected"
    )
    assert found.endswith(" <- ValueError")  # the bridge's own error is kept as the cause


@pytest.mark.parametrize("stack", STACKS, ids="-".join)
def test_mtp_that_was_disabled_and_is_there_is_refused(stack: Stack) -> None:
    _, _, bridge, release = stack
    assert ask(stack)["disabled and built"].partition(": ")[2] == (
        f"UnsupportedError: verl-mtp-plugin: found a GPTModel that {bridge} {release} built with 1 MTP layer; expected "
        "none, since mtp.enable=False. Train them (actor_rollout_ref.model.mtp.enable=True), use the other bridge "
        "(actor_rollout_ref.actor.megatron.vanilla_mbridge), or give it a copy of the model whose config.json promises "
        "no MTP layers."
    )


@pytest.mark.parametrize("stack", STACKS, ids="-".join)
def test_fewer_layers_than_the_config_promises_are_refused(stack: Stack) -> None:
    assert (
        ask(stack)["one of two"]
        .partition(": ")[2]
        .startswith(
            f"UnsupportedError: verl-mtp-plugin: found a GPTModel that {stack[2]} 1.2 built with 1 MTP layer here and "
            "config.mtp_num_layers=1; expected 2 MTP layers on the last pipeline stage, since mtp.enable=True. Try"
        )
    )


def test_without_the_plugin_nobody_asks() -> None:
    found = ask(MBRIDGE[-1], "bare")
    # The weights are another model's: it comes as far as loading them.
    assert found["GLM-4.5"].startswith("loaded: KeyError: 'model.layers.0.self_attn.")
    assert found["disabled and built"] == "built"
