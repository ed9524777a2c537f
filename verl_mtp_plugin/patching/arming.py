"""Waiting for modules that somebody else will import."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

from wrapt import register_post_import_hook

logger = logging.getLogger(__name__)


def _initializing(module: ModuleType) -> bool:
    """Whether the body of ``module`` is still running, perhaps in another thread."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class _WatchedSpec(ModuleSpec):
    """A module's spec that tells when the import system marks the module as complete.

    The one event there is for a module that is being imported already: the import system sets ``_initializing`` to
    False on the spec when the body has ended. The spec becomes an ordinary one again with that.
    """

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            finished = self.__dict__.pop("verl_mtp_finished")
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            finished()


class ModuleWatch:
    """Calls ``on_ready(name)`` once a module has been imported completely.

    wrapt fires a hook at once when the module is in ``sys.modules``, even half-initialized; lets what a hook raises
    break the import, whose retry then succeeds without the hook; and never fires again after a reload. So: a module
    that is half-initialized when it is first watched (it imports verl, and verl imports us) is watched through its
    spec, nothing is ever raised, and reloads are noticed by whoever compares module specs.
    """

    def __init__(self, on_ready: Callable[[str], None]) -> None:
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._watched: set[str] = set()
        self._executed: set[str] = set()  # the body has run to its end, seen by our hook

    def watch(self, name: str) -> None:
        """Wait for ``name``; a module that is there already is left to :meth:`ready_module`."""
        with self._lock:
            if name in self._watched:
                return
            module = sys.modules.get(name)
            if module is not None:
                self._watch_half_initialized(name, module)
                return
            self._watched.add(name)
        registered = False

        def hook(module: ModuleType) -> None:
            if not registered:  # imported by another thread while we registered: maybe half-initialized
                self._watch_half_initialized(name, module)
                return
            self._executed.add(name)
            self._ready(name)

        register_post_import_hook(hook, name)
        registered = True

    def _watch_half_initialized(self, name: str, module: ModuleType) -> None:
        spec = module.__spec__
        if _initializing(module) and type(spec) is ModuleSpec:
            vars(spec)["verl_mtp_finished"] = lambda: self._ready(name)
            spec.__class__ = _WatchedSpec

    def _ready(self, name: str) -> None:
        try:
            self._on_ready(name)
        except Exception:  # a raising hook would break the user's import
            logger.exception("verl-mtp-plugin: deciding the patches of %s failed", name)

    def ready_module(self, name: str) -> ModuleType | None:
        """The module if it has been imported to its end, else None."""
        module = sys.modules.get(name)
        if module is None or (_initializing(module) and name not in self._executed):
            return None
        return module
