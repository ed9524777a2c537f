"""The table of verl's orders is complete: every function that controls rollout servers, in all four releases."""

from __future__ import annotations

import pytest

from tests.contract import stacks

from .orders import ORDERS
from .sources import ALL, SOURCES, found, table


@pytest.mark.parametrize("release", ALL)
def test_the_table_is_what_verl_calls(release: str) -> None:
    assert found(stacks.layer("verl", release) / "verl") == table(release)


def test_the_table_knows_the_releases_of_the_matrix() -> None:
    assert ALL == stacks.VERL


@pytest.mark.parametrize("release", ALL)
def test_every_function_of_the_table_is_played(release: str) -> None:
    """Or is one that only passes a control on, which the played ones do in their own server's terms."""
    passed_on = {s.function for s in SOURCES if s.file == "checkpoint_engine/base.py" and "Manager" in s.function}
    passed_on |= {"CheckpointEngineWorker.update_weights", "RewardModelManager.sleep", "RewardModelManager.wake_up"}
    passed_on |= {"FullyAsyncRollouter.add_replicas", "FullyAsyncRollouter.remove_replicas"}
    passed_on -= {"CheckpointEngineManager.update_weights"}  # played in every order with a standalone server
    played = {part for order in ORDERS.values() if release in order.releases for part, _ in order.parts}
    assert {function for _, function in table(release)} - passed_on - played == {
        "CheckpointEngineManager.update_weights"
    }
