"""Loads verl-mtp-plugin after ``import verl``. Imported by a ``.pth`` line, so at every start of Python here.

verl before 0.9 looks for no plugins, and SGLang's spawned schedulers never import verl; this reaches both. It costs a
few tenths of a millisecond (docs/RESULTS.md): it imports nothing that Python has not imported by then, and puts one
finder on ``sys.meta_path`` that compares a name.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

PLUGIN = "verl_mtp"  # our name in the entry-point group verl.plugins
PACKAGE = "verl_mtp_plugin"
#: Set by activate() and inherited by spawned children, so that an SGLang scheduler is recognized as part of the job.
CHILD_VARIABLE = "VERL_MTP_PLUGIN_CHILD"
SCHEDULER = "sglang.srt.managers.scheduler"


class _Loader:
    """Stands in for the module's real loader until its body has run, then does ``action`` once."""

    def __init__(self, loader: "Any", action: "Callable[[ModuleType], None]") -> None:
        self._loader = loader
        self._action = action

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: "ModuleType") -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._action(module)


class AfterImport:
    """A meta path finder that does ``action(module)`` after ``name`` has been imported, and is gone then."""

    def __init__(self, name: str, action: "Callable[[ModuleType], None]") -> None:
        self.name = name
        self.action = action

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name != self.name:
            return None
        for finder in sys.meta_path:
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec is not None else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self._done)
                return spec
        return None

    def _done(self, module: "ModuleType") -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self.action(module)


def wanted() -> bool:
    """Whether verl's own switches let this plugin in: ``VERL_USE_EXTERNAL_PLUGINS`` is auto or names it."""
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if policy == "auto" or PACKAGE in _names(os.environ.get("VERL_USE_EXTERNAL_MODULES", "")):
        return True
    return PLUGIN in _names(policy)


def _names(text: str) -> "list[str]":
    return [name.strip() for name in text.split(",")]


_searching: "set[str]" = set()


def find_spec(
    name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
) -> "ModuleSpec | None":
    """The spec of ``name`` as everybody else finds it, with the plugin loaded after the module."""
    if name in _searching or (name == SCHEDULER and CHILD_VARIABLE not in os.environ):
        return None
    _searching.add(name)  # the search comes back here: our finder is one of those that are asked
    try:
        return AfterImport(name, _load).find_spec(name, path, target)
    finally:
        _searching.discard(name)


def _load(module: "ModuleType") -> None:
    if wanted():
        __import__(PACKAGE + ".autoload")


class VerlMtpStartup:
    """The finder: none of its business but for two names."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        return find_spec(name, path, target) if name in ("verl", SCHEDULER) else None


def active() -> bool:
    """Whether the finder is in place in this process."""
    return any(getattr(finder, "__name__", "") == VerlMtpStartup.__name__ for finder in sys.meta_path)


if __name__ == "_verl_mtp_startup":  # the installed copy, not the package's own
    sys.meta_path.insert(0, VerlMtpStartup)
