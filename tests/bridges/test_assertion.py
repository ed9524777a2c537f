"""The assertion that MTP needs ``vanilla_mbridge``: lifted for models whose Megatron-Bridge does MTP, and for no other.

verl's git carried it from df340d703 to before ea042c2e4. Point VERL_MTP_SNAPSHOT at a checkout of df340d703 to ask
verl's own method; without it verl 0.7.1's stands in, with the assertion put in front of it.
"""

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

#: What verl 0.7.1 and its snapshots import together with.
RELEASES = (("megatron-bridge", "0.3.1"), ("megatron-core", stacks.MBRIDGE_CORE), ("mbridge", stacks.MBRIDGE[-1]))
SNAPSHOT = "VERL_MTP_SNAPSHOT"
REFUSAL = (
    "UnsupportedError: verl-mtp-plugin: found {model} with megatron-bridge 0.3.1: {why}; expected a bridge that builds "
    "and converts this model's MTP layers, since mtp.enable=True. {ways}megatron-bridge 0.3.1 does the MTP of {others}."
    " To register support, describe a family in the hook verl_mtp_models and mend a bridge in verl_mtp_patches: "
    "help(verl_mtp_plugin.hookspecs). To train without MTP set actor_rollout_ref.model.mtp.enable=False."
)


@functools.cache
def ask(mode: str) -> dict[str, Any]:
    verl = os.environ.get(SNAPSHOT) or str(stacks.layer("verl", "0.7.1"))
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    paths = [verl, *(str(stacks.layer(*release)) for release in RELEASES)]
    env |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "VERL_USE_EXTERNAL_PLUGINS": "none"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", "tests.bridges.assertion_worker", folder, mode]
        done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(results(done)[0])
    return found


def test_whose_method_was_asked() -> None:
    assert ask("on")["assertion"] == ("verl's" if os.environ.get(SNAPSHOT) else "ours")


@pytest.mark.parametrize("model", ["supported", "unsupported", "no_bridge"])
def test_without_the_plugin_it_holds_for_every_model(model: str) -> None:
    assert ask("bare")[model] == "AssertionError: MTP requires vanilla_mbridge to be True"


def test_it_is_lifted_for_a_model_that_can() -> None:
    # One MTP layer, by Megatron-Bridge, and the user's config is as it was.
    assert ask("on")["supported"] == [1, False, False]


def test_a_model_without_mtp_in_this_release_is_refused() -> None:
    assert ask("on")["unsupported"] == REFUSAL.format(
        model="DeepseekV3ForCausalLM (model_type deepseek_v3, family DeepSeek-V3)",
        why="DeepSeekV3Bridge builds this model without MTP layers (mtp_num_layers=None)",
        ways="megatron-bridge does DeepSeek-V3 from 0.4.0 on. mbridge does it from 0.15.1 on: "
        "actor_rollout_ref.actor.megatron.vanilla_mbridge=True. ",
        others="GLM-4.5",
    )


def test_a_model_without_a_bridge_is_refused() -> None:
    assert ask("on")["no_bridge"] == REFUSAL.format(
        model="MiMoForCausalLM (model_type mimo, family MiMo)",
        why="it has no bridge class for this model",
        ways="megatron-bridge does MiMo from 0.4.0 on. mbridge does it from 0.15.1 on: "
        "actor_rollout_ref.actor.megatron.vanilla_mbridge=True. ",
        others="GLM-4.5",
    )


def test_the_other_assertion_stays() -> None:
    for mode in ("on", "bare"):
        assert ask(mode)["no_mbridge_at_all"] == "AssertionError: MTP requires use_mbridge to be True"


def test_mbridge_is_as_before() -> None:
    assert ask("on")["mbridge"] == ask("bare")["mbridge"] == [1, True, True]


def test_disabled_mtp_passes_and_stays_disabled() -> None:
    assert ask("bare")["disabled"] == [1, False, False]  # Megatron-Bridge reads the file again
    assert ask("on")["disabled"] == [None, False, False]
