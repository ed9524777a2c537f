"""The names of tensors in exports and saved folders: with the plugin those without it, plus what is mended, by name."""

from __future__ import annotations

from typing import Any

import pytest

from ..roundtrip.cells import Stack
from .cells import BUILT, MENDED, REFUSED, STACKS
from .run import ask, states

every_stack = pytest.mark.parametrize("stack", STACKS, ids=str)


def cells(stack: Stack) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """What came of every family and state that was built: ``without`` and ``with`` the plugin."""
    found = {(name, state): cell for name, of in ask(stack).items() for state, cell in states(of).items()}
    return {place: cell for place, cell in found.items() if "refused" not in cell}


@every_stack
def test_the_families_that_the_stack_can_build_are_built(stack: Stack) -> None:
    found = ask(stack)
    assert sorted(name for name, of in found.items() if of["source"] is None) == sorted(BUILT[stack])
    refused = {name for name, of in found.items() for state, c in states(of).items() if "refused" in c}
    assert refused == set(REFUSED[stack])
    for name in BUILT[stack]:
        without_copies = any("no copies" in state for state in states(found[name]))
        assert {state for state in states(found[name]) if "copies" not in state} == {"enabled", "disabled"}
        assert without_copies == (name in {"DeepSeek-V3", "Step-3.5"} or name.startswith("GLM"))


@every_stack
def test_the_plugin_changes_no_name_in_an_export(stack: Stack) -> None:
    for place, cell in cells(stack).items():
        names = cell["with"]["export"]
        assert names == cell["without"]["export"], place
        assert isinstance(names, list), (place, names)
        assert len(set(names)) == len(names), place


@every_stack
def test_a_folder_has_what_is_exported_and_nothing_else(stack: Stack) -> None:
    for place, cell in cells(stack).items():
        assert cell["with"]["saved"] == cell["with"]["export"], place


@every_stack
def test_with_mtp_its_tensors_are_exported_and_without_it_only_copies_of_others(stack: Stack) -> None:
    for (family, state), cell in cells(stack).items():
        mtp = set(ask(stack)[family]["mtp"])
        exported = mtp.intersection(cell["with"]["export"])
        layer = {name for name in mtp if not name.endswith(("embed_tokens.weight", "head.weight", "output.weight"))}
        assert layer
        assert layer <= exported if state.startswith("enabled") else not layer & exported, (family, state)


@every_stack
def test_what_is_mended_is_named(stack: Stack) -> None:
    found: dict[str, list[str]] = {}
    for (family, state), cell in cells(stack).items():
        if cell["without"]["saved"] != cell["without"]["export"]:
            found.setdefault(family, []).append(state)
    assert {family: sorted(of) for family, of in found.items()} == {
        family: sorted(of) for family, of in MENDED[stack].items()
    }
