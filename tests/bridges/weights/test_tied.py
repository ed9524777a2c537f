"""The embedding of a model with MTP on two pipeline stages: one tensor in every export, and checkpoints that load."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

from .run import Runs, Stack, base_folder

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OWN, OWN_HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
#: Of the tiny MiMo with an untied head.
TENSORS = 43
TIED, UNTIED = "tied", "untied"
#: Run every time; the others where ``VERL_MTP_ALL_STACKS`` is set. Megatron-Bridge 0.3 has no model that runs here.
CELLS = (
    (Stack("0.9.1", "0.16.1"), TIED),
    (Stack("0.7.1", "0.17.1", "megatron-bridge", "0.4.2"), TIED),
    (Stack("0.9.1", "0.19.2", "megatron-bridge", "0.6.2"), TIED),
)
OTHERS = (
    (Stack("0.7.1", "0.15.3"), TIED),
    (Stack("0.9.1", "0.16.1"), UNTIED),
    (Stack("0.9.1", "0.17.1"), TIED),
    (Stack("0.8.0", "0.18.2"), TIED),
    (Stack("0.9.1", "0.19.2"), TIED),
    (Stack("0.8.0", "0.18.2", "megatron-bridge", "0.5.1"), TIED),
    (Stack("0.9.1", "0.19.2", "megatron-bridge", "0.6.2"), UNTIED),
)
ALL = CELLS + (OTHERS if os.environ.get("VERL_MTP_ALL_STACKS") else ())
every_cell = pytest.mark.parametrize(("stack", "kind"), ALL, ids=[f"{stack}-{kind}" for stack, kind in ALL])


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(base_folder(tmp_path_factory))


def stages(runs: Runs, stack: Stack, kind: str) -> list[dict[str, Any]]:
    return runs.ranks(stack, kind, module="weights.tied_worker")


@every_cell
def test_each_tensor_is_exported_once_and_the_embedding_is_the_trained_one(stack: Stack, kind: str, runs: Runs) -> None:
    first, last = stages(runs, stack, kind)
    names = Counter(name for name, _ in first["stream"])
    assert set(names.values()) == {1}
    assert len(names) == TENSORS - (kind == TIED)
    assert first["stream"] == last["stream"]
    sent = dict(first["stream"])
    assert sent[EMBEDDING] == first["held"][OWN]
    assert sent[EMBEDDING] != first["start"]
    assert (HEAD in sent) == (kind == UNTIED)


@every_cell
def test_the_last_stage_has_the_same_embedding_and_no_head_that_nobody_trains(
    stack: Stack, kind: str, runs: Runs
) -> None:
    first, last = stages(runs, stack, kind)
    assert last["held"][OWN] == first["held"][OWN]
    assert (OWN_HEAD in last["held"]) == (kind == UNTIED)
    # What verl's fused kernels read is the weight in use.
    assert last["log_probs_with"] == last["held"][OWN if kind == TIED else OWN_HEAD]


@every_cell
def test_both_kinds_of_checkpoints_are_saved_and_training_goes_on_from_them(
    stack: Stack, kind: str, runs: Runs
) -> None:
    first, last = stages(runs, stack, kind)
    assert first["folder"], "the Hugging Face folder differs from what the rollout engine is sent"
    assert first["saved"] != first["after"]
    for stage in (first, last):
        for resumed in stage["resumed"]:
            assert resumed["loaded"] == stage["saved"]
            assert resumed["metrics"] == stage["metrics"]
            assert resumed["after"] == stage["after"], "the optimizer's states were not those of the checkpoint"
    assert first["after"] == last["after"]


@every_cell
def test_copies_that_differ_are_neither_exported_nor_saved(stack: Stack, kind: str, runs: Runs) -> None:
    first, last = stages(runs, stack, kind)
    assert first["drifted"] == last["drifted"]
    for error in first["drifted"]:
        assert error.startswith(
            "AmbiguousWeightsError: verl-mtp-plugin: found pipeline stages whose copies of the embedding differ, on "
            "tensor parallel rank 0 of data parallel rank 0; expected the same embedding on the first stage and on "
        )


def test_both_bridges_train_the_same_model(runs: Runs) -> None:
    ended = {stages(runs, stack, kind)[0]["after"] for stack, kind in CELLS if stack.verl == "0.9.1" and kind == TIED}
    assert len(ended) == 1
