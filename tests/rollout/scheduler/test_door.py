"""The patches are in the scheduler processes of a verl job, in every release, and in no other server's."""

from __future__ import annotations

import pytest

from .releases import PINNED, ask

MIXIN = ["handles.runner", "questions.mixin", "update.mixin"]
MANAGER = ["handles.updater", "questions.manager", "update.manager"]
PATCHES = {
    "0.5.6": MIXIN,
    "0.5.8": MIXIN,
    "0.5.12.post1": [*MIXIN, "retract"],
    "0.5.21": [*MANAGER, "retract"],
    "0.5.22": [*MANAGER, "retract"],
    "0.5.23": [*MANAGER, "retract"],
}


@pytest.mark.parametrize("release", PINNED)
def test_a_scheduler_of_a_job_is_patched_as_it_is_imported(release: str) -> None:
    found = ask("door_worker", "job", sglang=release)
    assert found["verl"] is False
    assert found["active"] is True
    assert {f"rollout.sglang.{name}" for name in PATCHES[release]} <= set(found["applied"])


def test_a_server_without_verl_is_left_alone() -> None:
    found = ask("door_worker", "alone", sglang="0.5.8")
    assert found == {"verl": False, "active": False, "applied": []}
