"""verl 0.7.1 and 0.8.0 prepare MTP as 0.9 does; and all of them leave it out where nothing is trained."""

from __future__ import annotations

import functools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.contract import stacks
from verl_mtp_plugin.errors import UnsupportedError
from verl_mtp_plugin.verl_fixes.forward_only import infer_batch
from verl_mtp_plugin.verl_fixes.loss_mask import aligned

from .conftest import MARK
from .verl_fixes_samples import FORMS, KINDS, MASKS, PROMPTS, RESPONSES

NEWEST = stacks.VERL[-1]
VERSIONS = ("0.7.1", "0.8.0", NEWEST)
CASES = ("config", "masks", "forward_only", "critic", "none_built", "pipeline_stages")
#: Log-prob recompute, evaluation, and a training step.
PASSES = ("recompute", "evaluation", "step")


def start(verl: str, arguments: list[str], megatron_core: str = "0.16.1", **environment: str) -> subprocess.Popen[str]:
    releases = (("verl", verl), ("megatron-core", megatron_core), ("mbridge", stacks.MBRIDGE[-1]))
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    env |= {"PYTHONPATH": os.pathsep.join(str(stacks.layer(*release)) for release in releases), "OMP_NUM_THREADS": "1"}
    env |= {"VERL_USE_EXTERNAL_PLUGINS": "none", **environment}  # the worker activates what it needs
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=stacks.ROOT, env=env, **pipes)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-4000:]
    (line,) = (line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK))
    found: dict[str, Any] = json.loads(line)
    return found


@functools.cache
def run(verl: str, mode: str = "on", cases: tuple[str, ...] = CASES, megatron_core: str = "0.16.1") -> dict[str, Any]:
    """What the worker saw."""
    with tempfile.TemporaryDirectory() as folder:
        return finish(start(verl, ["tests.stack.verl_fixes_worker", folder, mode, *cases], megatron_core))


# -- which patches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verl", "needed"),
    [
        ("0.7.1", {"value_head", "packing.preprocess_thd_no_padding"}),
        ("0.8.0", {"packing.preprocess_thd_engine"}),
        (NEWEST, {"packing.preprocess_thd_engine"}),
    ],
)
def test_each_release_gets_what_it_lacks(verl: str, needed: set[str]) -> None:
    decisions = run(verl)["decisions"]
    always = {"forward_only", "loss_mask", "mtp_config"}  # no release has all of these
    assert {name for name, decision in decisions.items() if decision == "applied"} == needed | always
    rest = {"value_head"} - needed
    assert {decisions[name] for name in rest} <= {"not_needed"}


# -- the loss mask -----------------------------------------------------------------------------------------------------


def rolled(row: list[int]) -> list[int]:
    """Each position's next token: verl hands labels and mask over in this form."""
    return row[1:] + row[:1]


def expected_call(form: str, kind: str = "full") -> dict[str, list[list[int]]]:
    """What the model is to be given, from the samples alone. No position predicts a sequence's first token."""
    ids = [[*prompt, *response] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    masks = [[0] * len(prompt) + list(mask) for prompt, mask in zip(PROMPTS, MASKS, strict=True)]
    if kind == "every":
        masks = [[0] + [1] * (len(row) - 1) for row in ids]
    if form == "thd":
        ids, masks = ([[value for row in rows for value in row]] for rows in (ids, masks))
    width = max(map(len, ids))
    ids, masks = ([row + [0] * (width - len(row)) for row in rows] for rows in (ids, masks))
    return {"input_ids": ids, "labels": [rolled(row) for row in ids], "loss_mask": [rolled(row) for row in masks]}


@pytest.mark.parametrize("verl", VERSIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_mask_of_the_responses_reach_the_model(verl: str, kind: str, form: str) -> None:
    found = run(verl)["masks"][f"{kind}_{form}"]
    assert found == expected_call(form, kind)
    assert found == run(NEWEST)["masks"][f"{kind}_{form}"]


def bare() -> dict[str, Any]:
    return run("0.7.1", "bare", ("config", "masks", "forward_only", "critic"))


def test_without_the_patch_prompts_are_trained() -> None:
    """The fault itself, so that the test above is known to see it."""
    masks = bare()["masks"]
    for form in FORMS:
        assert masks[f"padded_{form}"]["labels"] == expected_call(form)["labels"]
        assert masks[f"padded_{form}"]["loss_mask"] != expected_call(form)["loss_mask"]
        assert masks[f"response_{form}"] == "ValueError"
        assert masks[f"full_{form}"] == expected_call(form)
        assert masks[f"every_{form}"]["loss_mask"] != expected_call(form, "every")["loss_mask"]
    # The first sample's prompt has five tokens: predicting the second of them was trained.
    assert masks["padded_bshd"]["loss_mask"][0][0] == 1


def test_a_mask_whose_place_is_unknown_is_refused() -> None:
    whole = torch.nested.as_nested_tensor([torch.arange(5), torch.arange(3)], layout=torch.jagged)
    responses = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(UnsupportedError, match="a padded loss mask of 4 columns and no attention mask"):
        aligned(responses, whole)
    with pytest.raises(UnsupportedError, match="a loss mask for 4 tokens of a sequence of 3"):
        aligned(responses, whole, torch.ones(2, 6))
    lengths = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]])
    assert [row.tolist() for row in aligned(responses, whole, lengths).unbind()] == [
        [False, False, True, True, True],
        [False, True, True],
    ]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_the_mask_is_that_of_each_sequence_by_itself(dtype: torch.dtype, padded: bool) -> None:
    rng = random.Random(2)
    for _ in range(40):
        lengths = [rng.choice((1, 1, 2, 5, 9)) for _ in range(rng.randint(1, 7))]
        responses = [[rng.randint(0, 1) for _ in range(rng.randint(0, length))] for length in lengths]
        wanted = []
        for length, response in zip(lengths, responses, strict=True):
            whole = [0] * (length - len(response)) + response
            wanted.append([0, *whole[1:]])
        tokens = torch.nested.as_nested_tensor([torch.ones(n) for n in lengths], layout=torch.jagged)
        width = max(map(len, responses))
        if padded:
            mask = torch.tensor([[*response, *[1] * (width - len(response))] for response in responses]).to(dtype)
            attention = torch.tensor([[0, 1, *[1] * len(r), *[0] * (width - len(r))] for r in responses])
            found = aligned(mask, tokens, attention)
        else:
            mask = torch.nested.as_nested_tensor([torch.tensor(r, dtype=dtype) for r in responses], layout=torch.jagged)
            found = aligned(mask, tokens)
        assert found.dtype is dtype
        assert [row.tolist() for row in found.unbind()] == wanted


# -- the layer count, and MTP that is disabled -------------------------------------------------------------------------


@pytest.mark.parametrize("verl", VERSIONS)
def test_layers_are_found_under_every_name_and_disabled_for_every_bridge(verl: str) -> None:
    found = run(verl)["config"]
    for name in ("deepseek", "qwen3_5", "qwen3_5_vl"):
        enabled = {"override": {"mtp_loss_scaling_factor": 0.7}, "counts": [1], "config_changed": False}
        assert found[f"{name}_True"] == enabled
        disabled = {"override": {"mtp_num_layers": None}, "counts": [0], "config_changed": True}
        assert found[f"{name}_False"] == disabled
    # verl 0.8 and later clear the count before this, and the bridge reads the file again.
    for name in ("cleared", "none"):
        assert found[f"{name}_True"] == "enable mtp while model has no mtp layer,"
        assert found[f"{name}_False"]["override"] == {"mtp_num_layers": None}


def test_without_the_patch_other_names_are_unknown_and_bridges_not_told() -> None:
    found = bare()["config"]
    assert found["qwen3_5_True"] == found["qwen3_5_vl_True"] == "enable mtp while model has no mtp layer,"
    assert "mtp_num_layers" not in found["deepseek_False"]["override"]


@pytest.mark.parametrize("verl", VERSIONS)
def test_disabled_mtp_is_not_built(verl: str) -> None:
    found = run(verl)["forward_only"]
    assert (found["disabled"]["mtp_num_layers"], found["disabled"]["mtp_parameters"]) == (None, 0)
    assert found["enabled"]["mtp_num_layers"] == 1
    assert found["enabled"]["mtp_parameters"] > 0


def test_disabled_mtp_attaches_no_loss_on_the_newest_megatron_core() -> None:
    found = run("0.8.0", cases=("newest_megatron",), megatron_core=stacks.MEGATRON_CORE[-1])
    assert found["newest_megatron"] == {"heads": 1, "mtp": 0, "tracker": []}


# -- passes that train nothing -----------------------------------------------------------------------------------------


def without_mtp(found: dict[str, Any], name: str, passes: tuple[str, ...]) -> None:
    """``found[name]`` did in these passes what the model without MTP does."""
    for step in passes:
        seen = found[name][step]
        assert (seen["heads"], seen["mtp"]) == (1, 0)
        assert [call["labels"] for call in seen["calls"]] == [call["loss_mask"] for call in seen["calls"]] == [None]
        assert seen == found["disabled"][step]
    assert found[name]["log_probs"] == found["disabled"]["log_probs"]
    assert found[name]["config_restored"]


@pytest.mark.parametrize("verl", VERSIONS)
def test_recompute_and_evaluation_do_what_they_do_without_mtp(verl: str) -> None:
    found = run(verl)["forward_only"]
    without_mtp(found, "trained", ("recompute", "evaluation"))
    assert not [name for name in found["trained"]["metrics"] if "mtp" in name]
    # ... while a training step prepares labels and mask besides, runs the layer and its share of the head.
    step, plain = found["trained"]["step"], found["disabled"]["step"]
    assert step["mtp"] == 1
    assert step["prepared"] == plain["prepared"] + 2
    assert step["calls"] == [expected_call("thd")]


@pytest.mark.parametrize("verl", VERSIONS)
def test_mtp_that_is_only_enabled_costs_nothing(verl: str) -> None:
    without_mtp(run(verl)["forward_only"], "enabled", PASSES)


def test_without_the_patch_recompute_prepares_labels() -> None:
    seen = bare()["forward_only"]["trained"]["recompute"]
    assert seen["prepared"] == bare()["forward_only"]["disabled"]["recompute"]["prepared"] + 2
    assert seen["calls"][0]["labels"] == expected_call("thd")["labels"]


@pytest.mark.parametrize("verl", ["0.7.1", NEWEST])
def test_recompute_through_a_pipeline(verl: str, tmp_path: Path) -> None:
    """Two stages: the last one has MTP and, in training, the tokens; in recompute it gets hidden states alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    stages = [
        start(verl, ["tests.stack.verl_fixes_worker", str(tmp_path / rank), "on", "forward_only"], RANK=rank, **common)
        for rank in ("0", "1")
    ]
    with ThreadPoolExecutor() as pool:  # each must be read while it runs: a full pipe would stop both
        first, last = (found["forward_only"] for found in pool.map(finish, stages))
    without_mtp(last, "trained", ("recompute", "evaluation"))
    without_mtp(last, "enabled", PASSES)
    assert last["trained"]["step"]["mtp"] == 1
    assert last["trained"]["log_probs"] == run(verl)["forward_only"]["disabled"]["log_probs"]
    assert [(first[name][step]["heads"], first[name][step]["mtp"]) for name in first for step in PASSES] == [(0, 0)] * 9


def test_the_config_is_restored_after_an_error() -> None:
    def fail(engine: Any) -> None:
        seen.append((engine.model_config.mtp.enable, engine.model_config.mtp.enable_train, engine.model_config.path))
        raise RuntimeError("out of memory")

    seen: list[tuple[bool, bool, str]] = []
    config = SimpleNamespace(mtp=SimpleNamespace(enable=True, enable_train=True), path="model")
    engine = SimpleNamespace(model_config=config)
    with pytest.raises(RuntimeError, match="out of memory"):
        infer_batch(fail, engine)
    assert seen == [(False, False, "model")]
    assert engine.model_config is config
    assert config == SimpleNamespace(mtp=SimpleNamespace(enable=True, enable_train=True), path="model")


# -- critics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verl", VERSIONS)
def test_a_critic_has_no_mtp(verl: str) -> None:
    found = run(verl)["critic"]
    assert found["class"] == "MegatronEngineWithValueHead"
    assert [len(row) for row in found["values"]] == [len(p) + len(r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    for seen in (found["inferred"], found["trained"]):
        assert (seen["heads"], seen["mtp"]) == (1, 0)
        assert [(call["labels"], call["loss_mask"]) for call in seen["calls"]] == [(None, None)]
    assert found["grad_norm"] > 0
    newest = run(NEWEST)["critic"]
    assert (found["values"], found["grad_norm"]) == (newest["values"], newest["grad_norm"])


def test_without_the_patch_no_critic_runs() -> None:
    assert bare()["critic"].startswith("TypeError: gptmodel_forward_no_padding() got an unexpected keyword argument")


# -- MTP that was not built --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verl", VERSIONS)
def test_an_override_that_takes_enabled_mtp_away_is_refused(verl: str) -> None:
    found = run(verl)["none_built"]
    # Trained or frozen: what the rollout drafts with comes from here.
    assert found["True"] == found["False"]
    assert found["True"] == (
        "UnsupportedError: verl-mtp-plugin: found mtp.enable=True with override_transformer_config."
        "mtp_num_layers=None; expected MTP either enabled or taken away. Drop that override, or set "
        "actor_rollout_ref.model.mtp.enable=False."
    )


def test_only_stages_that_must_hold_mtp_are_asked_for_it() -> None:
    found = run(NEWEST)["pipeline_stages"]
    assert found.pop("last_with_mtp") == found.pop("first") == "passed"
    assert "built with no MTP block on the last pipeline stage" in found.pop("last_without_mtp")
    for name, depths in {"first_zero_depths": 0, "last_zero_depths": 0, "last_no_depths": None}.items():
        assert f"mbridge 1.2 built with config.mtp_num_layers={depths}" in found.pop(name)
    assert not found


# -- verl 0.7.1's own workers ------------------------------------------------------------------------------------------


@functools.cache
def legacy() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return finish(start("0.7.1", ["tests.stack.verl_legacy_worker", folder]))


def test_legacy_workers_build_mtp_for_an_actor_that_enables_it_alone() -> None:
    assert {legacy()["decisions"][name] for name in ("legacy_config", "legacy_built")} == {"applied"}
    assert legacy()["depths"] == {"actor": 1, "actor_disabled": None, "reference": None, "critic": None}
    assert legacy()["overrides"] == {"actor": "none", "actor_disabled": None, "reference": None, "critic": None}


def test_the_legacy_actor_runs_mtp_in_training_alone() -> None:
    actors = legacy()["actors"]
    for name in ("trained", "enabled"):
        assert actors[name]["log_probs"] == actors["disabled"]["log_probs"]
        assert actors[name]["recompute"] == actors["disabled"]["recompute"]
    assert actors["enabled"]["step"] == actors["disabled"]["step"]
    assert actors["trained"]["step"]["mtp"] == 1
    assert (actors["enabled"]["step"]["heads"], actors["enabled"]["step"]["mtp"]) == (1, 0)


def test_the_legacy_actor_refuses_what_it_would_not_train() -> None:
    refused = legacy()["refused"]
    assert refused["not_built"].startswith("UnsupportedError: verl-mtp-plugin: found a GPTModel that mbridge")
    assert refused["not_built_frozen"] == refused["not_built"]
    assert "built with 1 MTP layer; expected none, since mtp.enable=False" in refused["disabled"]
    assert "use_remove_padding=False in verl's own actor, which gives the model no labels" in refused["padded"]
    assert refused["built"] == "passed"
