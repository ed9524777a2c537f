"""The checks notice what they are for, and the reference is right: by deliberate faults, and by finite differences."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from .faults import MUST_TRIP
from .runner import TIMEOUT_S, environment
from .stacks import MEGATRON_CORE, ROOT, VERL, Cell

#: The newest megatron-core: a fault needs something to be put into, such as a padding mask.
CELL = Cell(VERL[-1], MEGATRON_CORE[-1])


def _run(module: str, cell: Cell) -> dict[str, Any]:
    command = [sys.executable, "-m", module, "--verl", cell.verl, "--megatron-core", cell.megatron_core]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(cell), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_faults_are_noticed() -> None:
    found = _run("tests.contract.faults", CELL)
    assert set(found) == set(MUST_TRIP)
    assert found["none"] == []
    missed = {fault: sorted(set(checks) - set(found[fault])) for fault, checks in MUST_TRIP.items()}
    assert not any(missed.values()), missed


def test_reference() -> None:
    """Against upstream's own MTP block, a loss computed by hand, and finite differences, in fp64."""
    found = _run("tests.contract.reference_check", CELL)
    assert found["hidden_states"] < 1e-6
    assert found["loss_by_hand"] < 1e-10
    assert found["finite_differences"] < 1e-5
    assert found["directional_derivative"] > 1e-3, "the derivative is too small to compare with"
