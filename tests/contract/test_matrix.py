"""The 20 cells: every required check holds with the plugin; without it, some do not.

With ``VERL_MTP_CONTRACT_OUT`` set, results are left there and reused, so that every cell runs once per CI run.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .checks import CHECKS, checks_for
from .runner import OUT_VARIABLE, failing, run
from .stacks import MEGATRON_CORE, VERL, Cell, cells

CELLS = list(cells())


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the cells' results."""
    named = os.environ.get(OUT_VARIABLE)
    return Path(named) if named else tmp_path_factory.mktemp("contract")


def _assert_complete(result: dict[str, Any], cell: Cell, *, plugin: bool) -> None:
    assert [check["name"] for check in result["checks"]] == [check.name for check in checks_for(plugin=plugin)]
    assert result["verl_import_error"] is None, f"verl {cell.verl} was not part of this cell"
    assert result["versions"]["verl"] == cell.verl
    assert result["versions"]["megatron-core"] == cell.megatron_core


def test_the_matrix_is_whole() -> None:
    """A cell or a check that went missing would otherwise not be missed."""
    assert len(CELLS) == len(set(CELLS)) == len(VERL) * len(MEGATRON_CORE) == 20
    assert Counter(check.kind.value for check in CHECKS) == {"required": 41, "plugin": 8}
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_with_plugin(cell: Cell, results: Path) -> None:
    result = run(cell, "on", results)
    _assert_complete(result, cell, plugin=True)
    broken = failing(result, "required", "plugin")
    assert not broken, "\n".join([f"{cell}: {len(broken)} checks fail", *(f"  {k}: {v}" for k, v in broken.items())])
    assert {"id": "training.postprocess.gpt_model", "decision": "applied"} in result["patches"]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_without_plugin(cell: Cell, results: Path) -> None:
    """The same checks find what is broken without the plugin, so they can fail."""
    result = run(cell, "off", results)
    _assert_complete(result, cell, plugin=False)
    assert failing(result, "required")
