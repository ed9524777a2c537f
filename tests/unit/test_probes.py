"""Every probe that reads the code of a function reads upstream's, whatever is wrapped around it, and never our own."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import verl_mtp_plugin
from verl_mtp_plugin.rollout import ranks

PACKAGE = Path(verl_mtp_plugin.__file__).parent
#: Reads ``__wrapped__`` of verl's decorator itself: a second layer there is not what its patch was written for.
ONE_LAYER = {"rollout/manager.py:decide"}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of the package, by file and name, each without those that lie in it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{path.relative_to(PACKAGE)}:{node.name}", node


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(function):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from own_nodes(child)


def reads_code(node: ast.AST) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == "__code__") or (
        isinstance(node, ast.Constant) and node.value == "__code__"
    )


PROBES = {name: node for name, node in functions() if any(map(reads_code, own_nodes(node)))}


def test_the_probes_are_found() -> None:
    assert {"rollout/ranks.py:_upstream_waits", "rollout/sglang/retraction.py:_names"} <= PROBES.keys()
    assert len(PROBES) >= 15


@pytest.mark.parametrize("name", sorted(PROBES.keys() - ONE_LAYER))
def test_a_probe_looks_beneath_wrappers(name: str) -> None:
    calls = [node for node in own_nodes(PROBES[name]) if isinstance(node, ast.Call)]
    unwrapped = [call for call in calls if ast.unparse(call.func) == "inspect.unwrap"]
    assert unwrapped, f"{name} reads __code__ of what somebody may have wrapped"


@pytest.mark.parametrize("name", sorted(PROBES))
def test_a_probe_has_no_function_to_fall_back_on(name: str) -> None:
    """``inspect.unwrap(upstream or ours)`` answers for ours where upstream has none."""
    for node in own_nodes(PROBES[name]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "inspect.unwrap":
            assert not any(isinstance(inner, (ast.BoolOp, ast.IfExp)) for inner in ast.walk(node)), name


# -- the one that waits for all ranks --------------------------------------------------------------------------------


class Waits:
    """verl's worker with a barrier of its own."""

    async def update_weights(self) -> None:
        self.barrier()  # type: ignore[attr-defined]


class Hurries:
    async def update_weights(self) -> None:
        """Without one."""


class Other:
    """A worker without this method."""


@pytest.mark.parametrize(("worker", "waits"), [(None, False), (Other, False), (Hurries, False), (Waits, True)], ids=str)
def test_upstream_waits_only_where_its_worker_has_a_barrier(
    monkeypatch: pytest.MonkeyPatch, worker: Any, waits: bool
) -> None:
    monkeypatch.delitem(sys.modules, ranks.WORKERS, raising=False)
    if worker is not None:
        module = ModuleType(ranks.WORKERS)
        vars(module)["ActorRolloutRefWorker"] = worker
        monkeypatch.setitem(sys.modules, ranks.WORKERS, module)
    assert ranks._upstream_waits() is waits


def test_a_worker_that_comes_later_is_seen_through_its_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, ranks.WORKERS, raising=False)
    assert ranks._upstream_waits() is False

    @functools.wraps(Waits.update_weights)
    async def wrapped(self: Any) -> None:
        await Waits.update_weights(self)

    module = ModuleType(ranks.WORKERS)
    vars(module)["ActorRolloutRefWorker"] = type("Worker", (), {"update_weights": wrapped})
    monkeypatch.setitem(sys.modules, ranks.WORKERS, module)
    assert ranks._upstream_waits() is True
