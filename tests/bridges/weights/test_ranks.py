"""Two ranks agree on what is missing, also where one of them has no MTP layer, and neither waits for the other."""

from __future__ import annotations

import pytest

from tests.contract import stacks

from .run import Runs, Stack, base_folder
from .test_weights import HEAD_NAMES, INIT_STD, PARAMETER_NAMES, PARAMETERS

REPLICAS = Stack(stacks.VERL[-1], stacks.MBRIDGE_CORE)
STAGES = (REPLICAS, Stack("0.8.0", stacks.BRIDGE_CORES["0.5.1"], "megatron-bridge", "0.5.1"))
SHARDS = Stack(stacks.VERL[-1], stacks.MEGATRON_CORE[-1], "megatron-bridge", stacks.MEGATRON_BRIDGE[-1])


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(base_folder(tmp_path_factory))


@pytest.mark.parametrize("stack", STAGES, ids=str)
def test_the_stage_without_the_head_knows_of_it(stack: Stack, runs: Runs) -> None:
    first, last = runs.ranks(stack, "pp")
    assert (first["parameters"], last["parameters"]) == (0, PARAMETERS)
    assert (first["notices"], last["notices"]) == (1, 0)  # once, by the first rank
    for error, start in (
        ("no_head", f"no_head without tensors of the MTP layers: {HEAD_NAMES};"),
        ("plan", f"found MTP parameters that {stack.label} would not export: mtp.layers.0.eh_proj.weight;"),
        ("unsent", f"that {stack.label} did not export: model.mtp_layers.0.input_proj.weight;"),
        ("resume", f"without tensors of the MTP layers: {PARAMETER_NAMES};"),
    ):
        assert start in first[error]
        assert first[error] == last[error]
    assert first["sent"]
    assert first["saved"]
    assert first["digest"] == last["digest"]


def test_shards_that_look_into_different_copies_of_a_checkpoint(runs: Runs) -> None:
    for found, folder in zip(runs.ranks(SHARDS, "tp"), ("full", "one"), strict=True):
        for mode in ("error", "random"):
            assert (
                f"-tp/{folder} with tensors of the MTP layers on some ranks and not on others: "
                "model.mtp_layers.0.input_proj.weight; expected the same checkpoint on all nodes. "
                "Complete the copies, or use a folder that all nodes share."
            ) in found[mode]


def test_an_error_on_one_rank_is_one_on_all(runs: Runs) -> None:
    first, second = runs.ranks(SHARDS, "tp")
    assert second["unreadable"].startswith("SafetensorError: ")
    assert first["unreadable"] == (
        f"MissingWeightsError: verl-mtp-plugin: found an error on rank 1 ({second['unreadable']}); expected all ranks "
        "to go on together. See the log of that rank."
    )


def test_shards_of_a_new_head(runs: Runs) -> None:
    first, second = runs.ranks(SHARDS, "tp")
    assert first["trunk"]
    assert first["deviation"] == pytest.approx(INIT_STD, rel=0.05)
    assert first["halves_differ"], "both shards were initialized alike"
    assert first["digest"] == second["digest"]


def test_replicas_start_the_same_new_head(runs: Runs) -> None:
    first, second = runs.ranks(REPLICAS, "dp")
    assert first["digest"] == second["digest"]
