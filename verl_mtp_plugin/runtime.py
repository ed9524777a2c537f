"""The state of this process: one patch engine, one set of plugins, one mode."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from . import __version__
from .environment import Environment
from .patching import PatchEngine, PatchSet
from .patching.patch import as_patch_set
from .plugins import Plugins
from .settings import Mode, Settings
from .startup import CHILD_VARIABLE

if TYPE_CHECKING:
    from .models.family import ModelFamily
    from .patching.report import PatchReport

#: Armed even when the plugin is off: "off" must reach the other nodes, and verl must still know the key of the switch.
ALWAYS: Final = frozenset({"job.forward_mode", "job.config_flag"})


class Runtime:
    """What :func:`verl_mtp_plugin.activate` and its siblings act on."""

    def __init__(self) -> None:
        self.environment = Environment()
        self.engine = PatchEngine(self.environment)
        self.settings = Settings()
        self.active = False
        self._plugins: Plugins | None = None
        self._lock = threading.RLock()

    def activate(self, settings: Settings | None = None) -> PatchReport:
        self.arm(settings)
        return self.report()

    def arm(self, settings: Settings | None = None) -> None:
        """Activate without a report: reading all versions would be half the cost at ``import verl``."""
        with self._lock:
            if settings is None and self.active:
                return
            settings = settings or Settings.from_environment()
            if self.active and settings.mode is Mode.OFF:
                self._stop(keep=ALWAYS)
            everyones = self._known_patches()
            self.settings = settings
            for package, patches in everyones:
                kept = [p for p in patches if settings.mode is not Mode.OFF or (not package and p.id in ALWAYS)]
                self.engine.skip((p for p in patches if p not in kept), f"{settings.source} is off", package=package)
                self.engine.arm(kept, package=package)
            if settings.mode is not Mode.OFF:
                self.active = True
                os.environ[CHILD_VARIABLE] = "1"

    def _known_patches(self) -> list[tuple[str, list[PatchSet]]]:
        """The patch sets of each package, after its name for messages ("" for our own)."""
        if self._plugins is None:
            self._plugins = Plugins()
        found = self._plugins.patches_by_package(self.environment)
        return [(package, [as_patch_set(item) for item in items]) for package, items in found]

    def deactivate(self) -> None:
        with self._lock:
            self._stop()

    def _stop(self, keep: frozenset[str] = frozenset()) -> None:
        self.active = False
        os.environ.pop(CHILD_VARIABLE, None)
        self.engine.revert_all(keep=keep)

    def models(self) -> list[ModelFamily]:
        with self._lock:
            if self._plugins is None:
                self._plugins = Plugins()
            return self._plugins.models()

    def report(self) -> PatchReport:
        from .patching.report import PatchReport

        return PatchReport(
            version=__version__,
            mode=str(self.settings.mode),
            active=self.active,
            versions=self.environment.versions,
            patches=self.engine.records(),
            plugins=self._plugins.records if self._plugins is not None else (),
            options=self.settings.options,
        )


_runtime = Runtime()

activate = _runtime.activate
arm = _runtime.arm
deactivate = _runtime.deactivate
report = _runtime.report
models = _runtime.models


def require(patch_id: str) -> None:
    """See :func:`verl_mtp_plugin.require`."""
    _runtime.engine.require(patch_id)


def settings() -> Settings:
    """The settings of the last activation."""
    return _runtime.settings
