"""Waiting for modules that somebody else will import."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from types import ModuleType

from wrapt import register_post_import_hook

logger = logging.getLogger(__name__)


def _initializing(module: ModuleType) -> bool:
    """Whether the body of ``module`` is still running, perhaps in another thread."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class ModuleWatch:
    """Calls ``on_ready(name)`` once a module has been imported completely.

    wrapt fires a hook at once when the module is in ``sys.modules``, even half-initialised; lets what a hook raises
    break the import, whose retry then succeeds without the hook; and never fires again after a reload. So: a
    half-initialised module is left waiting until the next question (:meth:`ready_module`), nothing is ever raised,
    and reloads are noticed by whoever compares module specs.
    """

    def __init__(self, on_ready: Callable[[str], None]) -> None:
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._watched: set[str] = set()
        self._executed: set[str] = set()  # the body has run to its end, seen by our hook

    def watch(self, name: str) -> None:
        """Wait for ``name``; a module that is there already is left to :meth:`ready_module`."""
        with self._lock:
            if name in self._watched or name in sys.modules:
                return
            self._watched.add(name)
        registered = False

        def hook(module: ModuleType) -> None:
            if not registered:  # imported by another thread while we registered: maybe half-initialised
                return
            self._executed.add(name)
            try:
                self._on_ready(name)
            except Exception:  # a raising hook would break the user's import
                logger.exception("verl-mtp-plugin: deciding the patches of %s failed", name)

        register_post_import_hook(hook, name)
        registered = True

    def ready_module(self, name: str) -> ModuleType | None:
        """The module if it has been imported to its end, else None."""
        module = sys.modules.get(name)
        if module is None or (_initializing(module) and name not in self._executed):
            return None
        return module
