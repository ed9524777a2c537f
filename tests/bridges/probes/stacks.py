"""Stacks with a real bridge that is asked before any weight is loaded. One process for each answers all questions."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from typing import Any, Final

from tests.contract import stacks
from tests.stack.conftest import results

MBRIDGE: Final = stacks.MBRIDGE[-1]
#: megatron-core under mbridge, and its name for the layer inside an MTP layer.
MEGATRON_CORE: Final = {stacks.MBRIDGE_CORE: "transformer_layer", stacks.MEGATRON_CORE[-1]: "mtp_model_layer"}
#: Megatron-Bridge, and a megatron-core that it imports with.
MEGATRON_BRIDGE: Final = stacks.BRIDGE_CORES

#: Parts of the refusals.
EXPECTED: Final = "; expected a bridge that builds and converts this model's MTP layers, since mtp.enable=True. "
REGISTER: Final = (
    " To register support, describe a family in the hook verl_mtp_models and mend a bridge in verl_mtp_patches: "
    "help(verl_mtp_plugin.hookspecs). To train without MTP set actor_rollout_ref.model.mtp.enable=False."
)


@functools.cache
def ask_mbridge(megatron_core: str, mode: str = "all") -> Any:
    """What mbridge's worker says."""
    return _run("probes.mbridge_worker", mode, {"mbridge": MBRIDGE, "megatron-core": megatron_core})


@functools.cache
def ask_megatron_bridge(release: str) -> Any:
    """What Megatron-Bridge's worker says."""
    releases = {"megatron-bridge": release, "megatron-core": MEGATRON_BRIDGE[release]}
    return _run("probes.megatron_bridge_worker", "all", releases)


def _run(worker: str, mode: str, releases: dict[str, str]) -> Any:
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    paths = [str(stacks.layer(*release)) for release in releases.items()]
    env |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", f"tests.bridges.{worker}", folder, mode]
        done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(results(done)[0])


def yes(what: str) -> list[Any]:
    """A probe's answer: supported."""
    return [True, what]


def no(why: str) -> list[Any]:
    """A probe's answer: not supported."""
    return [False, why]
