"""The patch engine, on modules made for the purpose."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from verl_mtp_plugin.errors import ForeignPatchError, PatchRequiredError
from verl_mtp_plugin.patching import (
    MISSING,
    Decision,
    Patch,
    PatchEngine,
    PatchSet,
    Target,
    Verdict,
    applicable,
    around,
    not_needed,
    unsupported,
)

BODY = """
    class Base:
        def inherited(self): return "inherited"
    class Thing(Base):
        limit = 3
        def method(self): return "method"
        @staticmethod
        def static(): return "static"
    def function(): return "function"
"""


@pytest.fixture
def module(write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, request: Any) -> Iterator[str]:
    """The name of a module that is importable and has not been imported."""
    name = "target_" + str(abs(hash(request.node.nodeid)))
    path = write(f"{name}.py", BODY)
    monkeypatch.syspath_prepend(str(path.parent))
    yield name
    sys.modules.pop(name, None)


def patch(module: str, qualname: str, value: Any = None, *, id: str = "", **kwargs: Any) -> Patch:
    """A patch that makes the function return ``("patched", what it returned)``, or puts ``value`` there."""
    build = (lambda original: value) if value is not None else around(lambda f, *a, **k: ("patched", f(*a, **k)))
    return Patch(
        id=id or qualname,
        target=Target(module, qualname),
        reason="a test",
        upstream="none",
        **{"build": build, **kwargs},
    )


def decisions(engine: PatchEngine) -> dict[str, Decision]:
    return {record.id: record.decision for record in engine.records()}


def test_armed_until_imported_then_applied_then_restored(module: str) -> None:
    engine = PatchEngine()
    engine.arm([patch(module, "Thing.method")])
    assert module not in sys.modules
    assert decisions(engine) == {"Thing.method": Decision.ARMED}
    imported = importlib.import_module(module)
    assert decisions(engine) == {"Thing.method": Decision.APPLIED}
    assert imported.Thing().method() == ("patched", "method")
    engine.revert_all()
    assert imported.Thing().method() == "method"
    assert decisions(engine) == {"Thing.method": Decision.REVERTED}


def test_imported_before(module: str) -> None:
    imported = importlib.import_module(module)
    engine = PatchEngine()
    engine.arm([patch(module, "function")])
    assert imported.function() == ("patched", "function")


def test_vars_of_every_owner_are_as_before_after_a_revert(module: str) -> None:
    imported = importlib.import_module(module)
    owners = (imported, imported.Base, imported.Thing)
    before = [dict(vars(owner)) for owner in owners]
    engine = PatchEngine()
    engine.arm(
        [
            patch(module, "Thing.method"),
            patch(module, "Thing.inherited"),  # not in vars(Thing): must be deleted again, not frozen there
            patch(module, "Thing.static", staticmethod(lambda: "other")),
            patch(module, "Thing.limit", 4),
            patch(module, "Thing.fresh", 1, creates=True),
            patch(module, "function"),
        ]
    )
    assert set(decisions(engine).values()) == {Decision.APPLIED}
    assert (imported.Thing.static(), imported.Thing.limit, imported.Thing.fresh) == ("other", 4, 1)
    assert imported.Thing().inherited() == ("patched", "inherited")
    assert [dict(vars(owner)) for owner in owners] != before
    engine.revert_all()
    assert [dict(vars(owner)) for owner in owners] == before


def test_builder_sees_the_raw_attribute_and_missing(module: str) -> None:
    imported = importlib.import_module(module)
    seen: list[Any] = []

    def build(original: Any) -> Any:
        seen.append(original)
        return 1

    engine = PatchEngine()
    engine.arm([patch(module, "Thing.static", build=build), patch(module, "Thing.new", build=build, creates=True)])
    assert isinstance(seen[0], staticmethod)
    assert seen[1] is MISSING
    assert imported.Thing.new == 1


def test_arming_again_changes_nothing(module: str) -> None:
    imported = importlib.import_module(module)
    engine = PatchEngine()
    for _ in range(3):
        engine.arm([patch(module, "Thing.method")])
    assert imported.Thing().method() == ("patched", "method")
    engine.revert_all()
    engine.revert_all()
    engine.arm([patch(module, "Thing.method")])
    assert imported.Thing().method() == ("patched", "method")


def test_reverted_while_waiting_stays_away(module: str) -> None:
    engine = PatchEngine()
    engine.arm([patch(module, "function")])
    engine.revert_all()
    assert importlib.import_module(module).function() == "function"


@pytest.mark.parametrize("qualname", ["Absent.method", "Thing.absent", "absent"])
def test_missing_seam_is_unsupported_and_says_so(module: str, qualname: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = PatchEngine()
    engine.arm([patch(module, qualname)])
    importlib.import_module(module)
    (record,) = engine.records()
    assert record.decision is Decision.UNSUPPORTED
    assert module in record.detail
    assert record.id in caplog.text


@pytest.mark.parametrize("qualname", ["Absent.method", "absent"])
def test_a_target_that_some_releases_do_without_is_not_needed(module: str, qualname: str) -> None:
    engine = PatchEngine()
    engine.arm([patch(module, qualname, absent_ok=True)])
    importlib.import_module(module)
    assert decisions(engine) == {qualname: Decision.NOT_NEEDED}


def test_probe_decides(module: str) -> None:
    def drifted(environment: Any, imported: ModuleType) -> Verdict:
        return unsupported(found="a tuple of 9", expected="a tuple of 5", advice="update")

    engine = PatchEngine()
    engine.arm(
        [
            patch(module, "Thing.method", decide=lambda e, m: not_needed("upstream does it")),
            patch(module, "function", decide=drifted),
            patch(module, "Thing.limit", 5, decide=lambda e, m: applicable("limit was 3")),
        ]
    )
    imported = importlib.import_module(module)
    records = {r.id: r for r in engine.records()}
    assert records["Thing.method"].decision is Decision.NOT_NEEDED
    assert records["function"].detail == "found a tuple of 9; expected a tuple of 5; update"
    assert records["Thing.limit"].detail == "limit was 3"
    assert (imported.Thing().method(), imported.function(), imported.Thing.limit) == ("method", "function", 5)


def test_a_set_is_all_or_nothing_when_a_seam_is_missing(module: str) -> None:
    engine = PatchEngine()
    engine.arm([PatchSet("pair", (patch(module, "function"), patch(module, "absent")))])
    imported = importlib.import_module(module)
    assert imported.function() == "function"
    assert set(decisions(engine).values()) == {Decision.UNSUPPORTED}


class ReadOnly(type):
    """A class that refuses one attribute when it is written."""

    def __setattr__(cls, name: str, value: Any) -> None:
        if name == "second":
            raise TypeError("read-only")
        super().__setattr__(name, value)


def test_a_set_is_all_or_nothing_when_writing_fails(module: str) -> None:
    imported: Any = importlib.import_module(module)
    imported.Guarded = ReadOnly("Guarded", (), {"first": 1, "second": 2})
    engine = PatchEngine()
    engine.arm([PatchSet("pair", (patch(module, "Guarded.first", 10), patch(module, "Guarded.second", 20)))])
    assert (imported.Guarded.first, imported.Guarded.second) == (1, 2)
    assert decisions(engine) == {"Guarded.first": Decision.UNSUPPORTED, "Guarded.second": Decision.FAILED}


def test_a_set_over_two_modules_waits_for_both(module: str, write: Callable[[str, str], Path]) -> None:
    other = module + "_other"
    write(f"{other}.py", "def function(): return 'other'")
    engine = PatchEngine()
    engine.arm([PatchSet("two", (patch(module, "function", id="a"), patch(other, "function", id="b")))])
    first = importlib.import_module(module)
    assert first.function() == "function"
    second = importlib.import_module(other)
    assert (first.function(), second.function()) == (("patched", "function"), ("patched", "other"))


@pytest.mark.parametrize("part", ["decide", "build"])
def test_what_raises_is_recorded_and_the_import_goes_on(
    module: str, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    def boom(*args: Any) -> Any:
        raise RuntimeError("boom")

    engine = PatchEngine()
    broken: dict[str, Any] = {part: boom}
    engine.arm([patch(module, "function", **broken)])
    imported = importlib.import_module(module)
    (record,) = engine.records()
    assert imported.function() == "function"
    assert (record.decision, record.detail) == (Decision.FAILED, "RuntimeError: boom")
    assert "boom" in caplog.text


def test_a_half_initialized_module_waits(module: str, write: Callable[[str, str], Path]) -> None:
    """The engine is armed from within the body of the module that it waits for, as VERL_USE_EXTERNAL_MODULES does."""
    name = module + "_half"
    write(f"{name}.py", f"import {name}_arm\ndef function(): return 'function'\n")
    write(f"{name}_arm.py", f"import engines\nengines.engine.arm([engines.patch('{name}', 'function')])\n")
    engines: Any = ModuleType("engines")
    engines.engine, engines.patch = PatchEngine(), patch
    sys.modules["engines"] = engines
    try:
        imported = importlib.import_module(name)
    finally:
        del sys.modules["engines"]
    assert imported.function() == ("patched", "function")  # as soon as the import has ended, unasked
    assert decisions(engines.engine) == {"function": Decision.APPLIED}
    assert type(imported.__spec__) is ModuleSpec
    assert "verl_mtp_finished" not in vars(imported.__spec__)


def test_a_failed_import_is_tried_again(module: str, write: Callable[[str, str], Path]) -> None:
    name = module + "_flaky"
    write(f"{name}.py", "import sys\nif not hasattr(sys, 'flaky_ok'): raise ImportError\ndef function(): return 1\n")
    engine = PatchEngine()
    engine.arm([patch(name, "function")])
    with pytest.raises(ImportError):
        importlib.import_module(name)
    assert decisions(engine) == {"function": Decision.ARMED}
    sys.flaky_ok = True  # type: ignore[attr-defined]
    try:
        assert importlib.import_module(name).function() == ("patched", 1)
    finally:
        del sys.flaky_ok  # type: ignore[attr-defined]


def test_a_reload_is_noticed_and_patched_again(module: str) -> None:
    engine = PatchEngine()
    engine.arm([patch(module, "function"), patch(module, "Thing.method")])
    imported = importlib.import_module(module)
    importlib.reload(imported)
    assert imported.function() == "function"  # nobody is told of a reload
    assert set(decisions(engine).values()) == {Decision.APPLIED}  # until somebody asks
    assert imported.function() == ("patched", "function")
    assert imported.Thing().method() == ("patched", "method")
    engine.revert_all()
    assert imported.function() == "function"
    assert imported.Thing().method() == "method"


def test_a_patch_on_top_is_left_alone_and_reported(module: str) -> None:
    imported: Any = importlib.import_module(module)
    engine = PatchEngine()
    engine.arm([patch(module, "function"), patch(module, "Thing.method")])
    ours = imported.function

    def theirs() -> Any:
        return ("theirs", ours())

    imported.function = theirs
    by_id = {r.id: r for r in engine.records()}
    assert by_id["function"].decision is Decision.CONFLICT
    assert "theirs" in by_id["function"].detail
    with pytest.raises(ForeignPatchError, match=r"function .*theirs"):
        engine.revert_all()
    assert imported.function is theirs
    assert imported.Thing().method() == "method"  # the rest is restored
    imported.function = ours
    engine.revert_all()
    assert imported.function() == "function"


def test_a_patch_beneath_is_kept_and_named(module: str) -> None:
    imported: Any = importlib.import_module(module)

    def theirs() -> str:
        return "theirs"

    imported.function = theirs
    engine = PatchEngine()
    engine.arm([patch(module, "function")])
    (record,) = engine.records()
    assert imported.function() == ("patched", "theirs")
    assert record.detail == f"on top of a patch from {__name__}"
    engine.revert_all()
    assert imported.function is theirs


def test_two_owners_of_one_target_conflict(module: str) -> None:
    imported = importlib.import_module(module)
    engine = PatchEngine()
    engine.arm([patch(module, "function", id="first"), patch(module, "function", id="second")])
    assert decisions(engine) == {"first": Decision.APPLIED, "second": Decision.CONFLICT}
    assert imported.function() == ("patched", "function")


def test_require(module: str) -> None:
    engine = PatchEngine()
    engine.arm([patch(module, "function"), patch(module, "absent"), patch(module, "Thing.limit", 1)])
    with pytest.raises(PatchRequiredError, match=r"function armed.*because otherwise: a test"):
        engine.require("function")
    importlib.import_module(module)
    engine.require("function")
    with pytest.raises(PatchRequiredError, match=r"absent unsupported .*does not exist"):
        engine.require("absent")
    with pytest.raises(PatchRequiredError, match=r"no patch 'unknown'; expected one of function, absent"):
        engine.require("unknown")


def test_set_ids_are_checked() -> None:
    with pytest.raises(ValueError, match="is empty"):
        PatchSet("none", ())
    with pytest.raises(ValueError, match="more than once"):
        PatchSet("twice", (patch("m", "a"), patch("m", "a")))


def test_threads_arm_import_and_revert_together(module: str, write: Callable[[str, str], Path]) -> None:
    """Imports hold module locks while hooks want the engine's; whoever got the order wrong would hang here."""
    names = [f"{module}_{i}" for i in range(20)]
    for name in names:
        write(f"{name}.py", "import time\ntime.sleep(0.002)\ndef function(): return 'function'\n")
    engine = PatchEngine()
    barrier = threading.Barrier(8)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            barrier.wait(10)
            for name in names if number % 2 else reversed(names):
                engine.arm([patch(name, "function", id=name)])
                importlib.import_module(name)
                engine.records()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
    for name in names:
        assert sys.modules[name].function() == ("patched", "function"), name
    engine.revert_all()
    assert {sys.modules[name].function() for name in names} == {"function"}


def test_activating_again_tries_what_could_not_be_applied(module: str) -> None:
    imported: Any = importlib.import_module(module)
    engine = PatchEngine()
    engine.arm([patch(module, "late")])
    assert decisions(engine) == {"late": Decision.UNSUPPORTED}
    imported.late = lambda: "late"
    engine.revert_all()
    engine.arm([patch(module, "late")])
    assert imported.late() == ("patched", "late")


def test_replacements_keep_name_and_signature(module: str) -> None:
    import inspect

    imported = importlib.import_module(module)
    before = inspect.signature(imported.Thing.method)
    engine = PatchEngine()
    engine.arm([patch(module, "Thing.method")])
    assert imported.Thing.method.__qualname__ == "Thing.method"
    assert inspect.signature(imported.Thing.method) == before


def test_one_id_twice_is_a_conflict(module: str) -> None:
    imported = importlib.import_module(module)
    engine = PatchEngine()
    engine.arm([patch(module, "function", id="same")])
    engine.arm([patch(module, "Thing.method", id="same")])
    engine.arm([PatchSet("set", (patch(module, "Thing.static", id="same"), patch(module, "Thing.limit", 4)))])
    assert [record.decision for record in engine.records()] == [Decision.APPLIED, *[Decision.CONFLICT] * 3]
    assert "'same' is taken by another patch" in engine.records()[1].detail
    assert imported.Thing().method() == "method"
    engine.require("same")  # the first one
    with pytest.raises(PatchRequiredError, match="conflict"):
        engine.require("set")


def test_a_conflict_stays_one_when_all_is_armed_again(module: str) -> None:
    """Hooks are asked at each activation, and make their patches anew; the first stays the owner."""

    def made() -> list[Patch]:
        return [patch(module, "function", id="first"), patch(module, "function", id="second")]

    imported = importlib.import_module(module)
    engine = PatchEngine()
    for _ in range(2):
        for _ in range(2):
            engine.arm(made())
        assert decisions(engine) == {"first": Decision.APPLIED, "second": Decision.CONFLICT}
        engine.revert_all()
        assert imported.function() == "function"


def test_what_a_set_left_out_would_have_patched_is_free(module: str) -> None:
    engine = PatchEngine()
    second = PatchSet("second", (patch(module, "function", id="a"), patch(module, "Thing.method", id="b")))
    engine.arm([patch(module, "function", id="first"), second, patch(module, "Thing.method", id="third")])
    importlib.import_module(module)
    assert decisions(engine)["third"] is Decision.APPLIED


def test_an_interrupted_probe_is_asked_again(module: str) -> None:
    answers: list[Any] = [KeyboardInterrupt(), applicable()]

    def decide(environment: Any, imported: ModuleType) -> Verdict:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    engine = PatchEngine()
    engine.arm([PatchSet("pair", (patch(module, "Thing.method"), patch(module, "function", decide=decide)))])
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(module)
    imported = importlib.import_module(module)
    assert set(decisions(engine).values()) == {Decision.APPLIED}
    assert (imported.function(), imported.Thing().method()) == (("patched", "function"), ("patched", "method"))


def test_require_names_the_nearest(module: str) -> None:
    engine = PatchEngine()
    ids = [f"training.part{number}" for number in range(40)]
    targets = [patch(module, f"name{number}", id=id) for number, id in enumerate(ids)]
    engine.arm([*targets, PatchSet("training.postprocess", (patch(module, "function", id="training.model"),))])
    with pytest.raises(PatchRequiredError) as caught:
        engine.require("training.postproces")
    assert caught.value.expected.startswith("one of training.postprocess")
    assert len(str(caught.value)) < 400
    with pytest.raises(PatchRequiredError, match="the id of one of the 42 patches and sets"):
        engine.require("?" * 10_000)


def test_require_says_what_to_import(module: str, write: Callable[[str, str], Path]) -> None:
    other = module + "_other"
    write(f"{other}.py", "def function(): return 'other'")
    importlib.import_module(module)
    engine = PatchEngine()
    engine.arm([PatchSet("two", (patch(module, "function", id="a"), patch(other, "function", id="b")))])
    with pytest.raises(PatchRequiredError) as caught:
        engine.require("a")
    assert f"patch a armed (waits for {other})" in str(caught.value)
    assert caught.value.advice.startswith(f"Import {other} first")
    importlib.import_module(other)
    engine.require("two")
