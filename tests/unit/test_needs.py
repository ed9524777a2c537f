"""A patch is applied only where everything that it calls is there and can be called so."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from verl_mtp_plugin.patching import Decision, Needs, Patch, PatchEngine, PatchSet, Target, around, with_needs
from verl_mtp_plugin.patching.patch import BROKEN, SATISFIED

HELPERS = """
    def helper(first, second, *, third=None): return first
    class Base:
        inherited = 1
        def _late(self): self.late = 1
    class Thing(Base):
        field: int
        def __init__(self, size): self.size = size; self._late()
        def method(self, value): return self.width
    constant = 3
"""


@pytest.fixture
def modules(write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, request: Any) -> Iterator[list[str]]:
    """The names of a target module and of a module of helpers, neither of them imported."""
    stem = str(abs(hash(request.node.nodeid)))
    names = [f"target_{stem}", f"helpers_{stem}"]
    for name, body in zip(names, ("def function(): return 'as it was'\n", HELPERS), strict=True):
        monkeypatch.syspath_prepend(str(write(f"{name}.py", body).parent))
    yield names
    for name in names:
        sys.modules.pop(name, None)


def patch(module: str, *needs: Needs, **kwargs: Any) -> Patch:
    build = around(lambda original: "patched")
    return Patch("area.what", Target(module, "function"), "a test", "none", build, needs=needs, **kwargs)


def decided(engine: PatchEngine) -> tuple[Decision, str]:
    (record,) = engine.records()
    return record.decision, record.detail


MET = [
    ("helper", {}),
    ("helper", {"positional": 2}),
    ("helper", {"positional": 1, "keywords": ("second", "third")}),
    ("Thing", {"attributes": ("size", "field", "inherited", "late", "method")}),
    ("Thing.method", {"positional": 2}),
    ("constant", {"check": lambda found: ""}),
    ("", {}),
    ("gone", {"optional": True}),
    ("gone", {"otherwise": ("helper", {"positional": 2})}),
    ("helper", {"otherwise": ("gone", {})}),
]
UNMET = [
    ("gone", {}, "does not exist"),
    ("helper.gone", {}, "does not exist"),
    ("helper", {"positional": 1}, "second"),
    ("helper", {"positional": 3}, "too many"),
    ("helper", {"positional": 2, "keywords": ("fourth",)}, "fourth"),
    ("helper", {"positional": 2, "keywords": ("fourth",), "optional": True}, "fourth"),
    ("constant", {"positional": 0}, "not callable"),
    ("Thing", {"attributes": ("size", "width")}, "has no width"),
    ("constant", {"check": lambda found: "is no good"}, "is no good"),
    ("gone", {"otherwise": ("gone_too", {})}, "gone_too does not exist"),
    ("helper", {"positional": 1, "otherwise": ("constant", {})}, "second"),
]


def test_a_class_whose_init_somebody_has_replaced_is_given_the_benefit_of_the_doubt(modules: list[str]) -> None:
    """A profiler's or vendor's wrapper without functools.wraps hides what the original sets."""
    target, helpers = (importlib.import_module(name) for name in modules)
    original = helpers.Thing.__init__

    def wrapped(self: Any, *args: Any) -> None:
        original(self, *args)

    before = dict(vars(helpers.Thing))
    lacking = Needs(f"{helpers.__name__}:Thing", attributes=("size", "width"))
    assert lacking.missing(helpers) == f"{helpers.__name__}:Thing has no width"
    assert dict(vars(helpers.Thing)) == before  # nothing of upstream's is changed by being looked at
    helpers.Thing.__init__ = wrapped
    assert lacking.missing(helpers) == ""
    assert target.function() == "as it was"


def need(module: str, name: str, arguments: dict[str, Any]) -> Needs:
    rest = dict(arguments)
    if "otherwise" in rest:
        rest["otherwise"] = need(module, *rest["otherwise"])
    return Needs(f"{module}:{name}" if name else module, **rest)


@pytest.mark.parametrize(("name", "arguments"), MET)
def test_what_is_there_is_no_reason_against_a_patch(modules: list[str], name: str, arguments: dict[str, Any]) -> None:
    target, helpers = modules
    importlib.import_module(helpers)
    engine = PatchEngine()
    engine.arm([patch(target, need(helpers, name, arguments))])
    assert importlib.import_module(target).function() == "patched"
    assert decided(engine) == (Decision.APPLIED, "")


@pytest.mark.parametrize(("name", "arguments", "says"), UNMET)
def test_what_is_missing_is_named_and_nothing_is_patched(
    modules: list[str], name: str, arguments: dict[str, Any], says: str
) -> None:
    target, helpers = modules
    importlib.import_module(helpers)
    engine = PatchEngine()
    engine.arm([patch(target, need(helpers, name, arguments))])
    assert importlib.import_module(target).function() == "as it was"
    decision, detail = decided(engine)
    assert decision is Decision.UNSUPPORTED
    assert helpers in detail
    assert says in detail


def test_nothing_is_imported_to_look(modules: list[str]) -> None:
    target, helpers = modules
    engine = PatchEngine()
    engine.arm([patch(target, Needs(f"{helpers}:gone"))])
    assert importlib.import_module(target).function() == "patched"
    assert helpers not in sys.modules
    assert decided(engine)[0] is Decision.APPLIED


def test_a_module_that_comes_later_takes_back_what_it_does_not_fit(modules: list[str]) -> None:
    target, helpers = modules
    engine = PatchEngine()
    both = PatchSet("set", (patch(target, Needs(f"{helpers}:gone")), patch_of_os()))
    engine.arm([both])
    module = importlib.import_module(target)
    assert module.function() == "patched"
    importlib.import_module(helpers)
    assert module.function() == "as it was"
    found = {record.id: record for record in engine.records()}
    assert {record.decision for record in found.values()} == {Decision.UNSUPPORTED}
    assert "gone does not exist" in found["area.what"].detail
    assert "because area.what" in found["other"].detail
    assert not hasattr(Holder, "created")


class Holder:
    """Owner of the second attribute of a set."""


def patch_of_os() -> Patch:
    return Patch(
        "other", Target(__name__, "Holder.created"), "a test", "none", lambda original: "created", creates=True
    )


def test_a_module_that_comes_later_and_fits_changes_nothing(modules: list[str]) -> None:
    target, helpers = modules
    engine = PatchEngine()
    engine.arm([patch(target, Needs(f"{helpers}:helper", positional=2))])
    module = importlib.import_module(target)
    importlib.import_module(helpers)
    assert module.function() == "patched"
    assert decided(engine) == (Decision.APPLIED, "")


def test_a_later_patch_of_somebody_else_is_not_torn_off(modules: list[str]) -> None:
    target, helpers = modules
    engine = PatchEngine()
    engine.arm([patch(target, Needs(f"{helpers}:gone"))])
    module: ModuleType = importlib.import_module(target)
    module.function = lambda: "foreign"  # type: ignore[attr-defined]
    importlib.import_module(helpers)
    assert module.function() == "foreign"
    assert decided(engine)[0] is Decision.UNSUPPORTED


@pytest.mark.parametrize("late", [False, True])
def test_an_optimization_that_does_not_fit_is_lost_and_no_fault(modules: list[str], late: bool) -> None:
    target, helpers = modules
    engine = PatchEngine()
    engine.arm([patch(target, Needs(f"{helpers}:gone"), optimization=True)])
    for name in (target, helpers) if late else (helpers, target):
        importlib.import_module(name)
    assert decided(engine)[0] is Decision.LOST
    assert sys.modules[target].function() == "as it was"


def test_an_optimization_without_its_target_is_lost(modules: list[str]) -> None:
    engine = PatchEngine()
    lost = Patch("id", Target(modules[0], "gone"), "a test", "none", around(lambda f: 1), optimization=True)
    engine.arm([lost])
    importlib.import_module(modules[0])
    assert decided(engine)[0] is Decision.LOST


def test_a_lost_optimization_stops_nothing_and_satisfies_nobody_who_requires_it() -> None:
    assert Decision.LOST not in BROKEN | SATISFIED  # BROKEN is what strict mode stops a job for


def test_a_table_completes_patches_by_their_id_and_their_sets() -> None:
    one, other = Needs("a:one"), Needs("a:other")
    lone = patch("m", one)
    together = PatchSet("set", (patch("m"), Patch("second", Target("m", "f"), "", "", lambda original: original)))
    table = {"area.what": (other,), "set": (one,)}
    first, second = with_needs((lone, together), table)
    assert isinstance(first, Patch)
    assert first.needs == (one, other)
    assert isinstance(second, PatchSet)
    assert [p.needs for p in second.patches] == [(one, other), (one,)]
    assert second.needed_modules == {"a"}
    assert with_needs((lone,), {}) == (lone,)
