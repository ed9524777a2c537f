"""MTP training asked of every engine that verl registers, and of those of other packages: trained, or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.contract.stacks import ROOT, VERL, layer

#: The engines of each verl that train MTP; ``MindSpeed`` ones are Megatron's on an NPU.
TRAIN = {"MegatronEngineWithLMHead", "MindspeedEngineWithLMHead", "MindSpeedMegatronEngineWithLMHead"}
#: Those that do not, by strategy, and in which verls they are.
REFUSED = {
    ("FSDPEngineWithLMHead", "fsdp"): VERL,
    ("FSDPEngineWithLMHead", "fsdp2"): VERL,
    ("FSDPTurboEngineWithLMHead", "fsdp_turbo"): ("0.9.1",),
    ("VeOmniEngineWithLMHead", "veomni"): VERL,
    ("TorchTitanEngineWithLMHead", "torchtitan"): VERL,
    ("AutomodelEngineWithLMHead", "automodel"): ("0.8.0", "0.9.0", "0.9.1"),
}
WENT_ON = "went on"
#: Where the plugin comes after verl's engines and those of other packages; else before.
LATE = ("0.8.0", "0.9.1")


def refusal(name: str, strategy: str) -> str:
    return (
        f"verl-mtp-plugin: found mtp.enable=True and mtp.enable_train=True with {name} (strategy {strategy}), which "
        "neither trains nor exports MTP"
    )


@cache
def found(verl: str) -> Any:
    """All answers of one process; Megatron's engine imports beside megatron-core 0.16.1 in each verl."""
    when = "late" if verl in LATE else "early"
    layers = (layer("verl", verl), layer("megatron-core", "0.16.1"), layer("mbridge", "0.15.1"))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, layers)), OMP_NUM_THREADS="1")
    command = [sys.executable, "-W", "ignore", "-m", "tests.stack.engines_worker", when]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("verl", VERL)
def test_every_registered_engine_trains_mtp_or_refuses_before_weights_load(verl: str) -> None:
    """Made by verl's registry, as ``TrainingWorker`` does, or directly: then at ``initialize``."""
    absent = {"automodel"} if verl == "0.7.1" else set()
    assert set(found(verl)["errors"]) == absent
    refused, went_on = set(), set()
    for name, engine in found(verl)["engines"].items():
        cls, strategy, _ = name.split()
        if engine["made"] == WENT_ON:
            assert engine["itself"] == WENT_ON, name
            went_on.add((cls, engine["model_type"]))
        else:
            assert engine["made"] == engine["itself"] == refusal(cls, strategy)
            refused.add((cls, strategy))
    assert refused == {engine for engine, verls in REFUSED.items() if verl in verls}
    # Critics have no labels to train MTP on.
    assert {cls for cls, model_type in went_on if model_type == "language_model"} <= TRAIN
    assert ("MegatronEngineWithLMHead", "language_model") in went_on
    assert all("ValueHead" in cls for cls, model_type in went_on if model_type == "value_model")


@pytest.mark.parametrize("verl", VERL)
def test_only_mtp_training_is_refused(verl: str) -> None:
    refused = refusal("FSDPEngineWithLMHead", "fsdp2")
    outcomes = found(verl)["variants"]
    assert {name for name, outcome in outcomes.items() if outcome == [refused] * 2} == {"asked", "no rollout", "lora"}
    assert {name for name, outcome in outcomes.items() if outcome == [WENT_ON] * 2} == {
        "frozen",
        "off",
        "forward only",
        "critic",
    }


@pytest.mark.parametrize("verl", VERL)
def test_an_engine_of_another_package_is_asked_too(verl: str) -> None:
    """By its code, or by what it says of itself; whether it was registered before the plugin came or after."""
    engines = dict(found(verl)["third parties"])
    for name in ("Silent", "Denies", "OfFsdp"):
        assert engines.pop(name) == [refusal(name, name), refusal(name, name), WENT_ON], name
    assert set(engines) == {"Reads", "ReadsByHelper", "Says"}
    assert all(outcomes == [WENT_ON] * 3 for outcomes in engines.values())


@pytest.mark.parametrize("verl", LATE)
def test_without_the_plugin_all_of_them_go_on(verl: str) -> None:
    bare = found(verl)["bare"]
    assert {engine["made"] for engine in bare["engines"].values()} == {WENT_ON}
    assert {*map(str, bare["variants"].values())} == {str([WENT_ON] * 2)}
    assert {*map(str, bare["third parties"].values())} == {str([WENT_ON] * 3)}


@pytest.mark.parametrize("verl", VERL)
def test_deactivated_it_asks_nothing(verl: str) -> None:
    assert set(found(verl)["after deactivate"]) == {WENT_ON}
    assert len(found(verl)["after deactivate"]) == 7


@pytest.mark.parametrize("verl", VERL)
def test_the_patches_are_in_place(verl: str) -> None:
    waiting = {"job.engines.automodel": "armed"} if verl == "0.7.1" else {}  # it has no such engine
    names = ("new", "register", "fsdp", "veomni", "torchtitan", "automodel")
    assert found(verl)["patches"] == {f"job.engines.{name}": "applied" for name in names} | waiting
