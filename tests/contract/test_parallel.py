"""Every layout of two processes: gradients as in one process, and log-probs as in the same layout without MTP.

``python -m tests.contract.parallel.generate`` runs the other releases too.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .parallel import runner
from .parallel.checks import CHECKS, checks_for
from .parallel.faults import MUST_TRIP
from .parallel.layouts import BY_NAME, LAYOUTS
from .runner import OUT_VARIABLE
from .stacks import MEGATRON_CORE

#: The oldest, the oldest that packs sequences with MTP, and the newest.
RELEASES = (MEGATRON_CORE[0], "0.16.1", MEGATRON_CORE[-1])


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the releases' results."""
    named = os.environ.get(OUT_VARIABLE)
    return Path(named) if named else tmp_path_factory.mktemp("parallel")


@pytest.mark.parametrize("release", RELEASES)
def test_layouts(release: str, results: Path) -> None:
    """All checks of all layouts hold; a check that hangs or was not reached does not."""
    found = runner.run(release, results)
    assert found["versions"]["megatron-core"] == release
    numbers = tuple(map(int, release.split(".")))
    assert set(found["layouts"]) == {layout.name for layout in LAYOUTS if numbers >= layout.since}
    failed = {
        f"{layout}/{check}": outcomes.get(check, {"detail": "was not run"})["detail"]
        for layout, outcomes in found["layouts"].items()
        for check in checks_for(BY_NAME[layout], numbers)
        if not outcomes.get(check, {"ok": False})["ok"]
    }
    assert not failed, "\n".join(f"{name}: {detail}" for name, detail in failed.items())


def test_no_check_went_missing() -> None:
    assert len(CHECKS) == 21
    counts = {
        (layout, core): len(checks_for(BY_NAME[layout], core)) for layout in BY_NAME for core in ((0, 16), (0, 17))
    }
    expected = {(layout, core): 20 if core == (0, 17) else 18 for layout, core in counts}
    expected |= {("pipeline", (0, 16)): 19, ("pipeline", (0, 17)): 21}
    assert counts == expected


def test_faults_are_noticed() -> None:
    """The checks can fail: on the newest megatron-core, each deliberate fault trips the ones that are there for it."""
    lines, ended = runner.pair(RELEASES[-1], "--faults")
    assert not ended, ended
    found = {(line["fault"], f"{line['layout']}/{line['check']}"): line["ok"] for line in lines if "check" in line}
    assert set(found) == {(fault, place) for fault, places in MUST_TRIP.items() for place in places}
    assert not any(found.values()), [name for name, ok in found.items() if ok]
