"""Third-party plugins: found by entry point, asked one by one, and left out by name when broken."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest

from verl_mtp_plugin.environment import Environment
from verl_mtp_plugin.hookspecs import PROJECT, hookimpl
from verl_mtp_plugin.models import ModelFamily
from verl_mtp_plugin.patching import Patch, Target
from verl_mtp_plugin.plugins import BUILTIN, Plugins

FAMILY = ModelFamily("Example", ("ExampleForCausalLM",), ("num_nextn_predict_layers",))
PATCH = Patch("third.party", Target("m", "f"), "reason", "upstream", build=lambda original: original)


def plugin(**functions: Any) -> ModuleType:
    module = ModuleType("third_party")
    for name, function in functions.items():
        setattr(module, name, hookimpl(function))
    return module


def point(monkeypatch: pytest.MonkeyPatch, name: str, loaded: Any) -> EntryPoint:
    """An entry point that loads to ``loaded`` (raises it, if it is an exception)."""

    def load(self: EntryPoint) -> Any:
        value = stubs.get(self.name, None)
        if isinstance(value, Exception):
            raise value
        return value if value is not None else original(self)

    if not hasattr(monkeypatch, "stubs"):
        monkeypatch.stubs = {}  # type: ignore[attr-defined]
        original = EntryPoint.load
        stubs = monkeypatch.stubs  # type: ignore[attr-defined]
        monkeypatch.setattr(EntryPoint, "load", load)
    monkeypatch.stubs[name] = loaded  # type: ignore[attr-defined]
    return EntryPoint(name, f"{name}.hooks", PROJECT)


def builtin_ids() -> list[str]:
    return [patch.id for patch in Plugins(()).patches(Environment())]


def test_builtin_patch_sets_come_through_the_same_door() -> None:
    plugins = Plugins(())
    assert [record.name for record in plugins.records] == [p.name for p in BUILTIN]
    assert {"training.postprocess", "job.config_flag", "job.forward_mode"} <= set(builtin_ids())


def test_a_third_party_registers_patches_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    module = plugin(verl_mtp_patches=lambda environment: [PATCH], verl_mtp_models=lambda: [FAMILY])
    plugins = Plugins((point(monkeypatch, "lab", module),))
    assert PATCH in plugins.patches(Environment())
    assert FAMILY in plugins.models()


def broken() -> dict[str, Any]:
    def raises(environment: Any) -> Any:
        raise ValueError("no such GPU")

    return {
        "import": ImportError("cannot import name x"),
        "hook": plugin(verl_mtp_patches=raises),
        "result": plugin(verl_mtp_patches=lambda environment: ["not a patch"]),
        "signature": plugin(verl_mtp_patches=lambda unknown: []),
        "none": plugin(verl_mtp_patches=lambda environment: [None]),
    }


@pytest.mark.parametrize("kind", broken())
def test_a_broken_one_is_named_and_harms_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    healthy = plugin(verl_mtp_patches=lambda environment: [PATCH])
    points = (point(monkeypatch, "bad", broken()[kind]), point(monkeypatch, "good", healthy))
    plugins = Plugins(points)
    ids = [patch.id for patch in plugins.patches(Environment())]
    assert ids == [*builtin_ids(), "third.party"]
    (record,) = [r for r in plugins.records if r.error]
    assert record.name == "bad"
    assert "'bad' from bad.hooks is left out" in caplog.text


def test_installed_entry_points_do_not_double_the_builtin_ones() -> None:
    names = [record.name for record in Plugins().records]
    assert len(names) == len(set(names))
