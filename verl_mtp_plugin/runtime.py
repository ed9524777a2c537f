"""The state of this process: one patch engine, one set of plugins, one mode."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from . import __version__
from .environment import Environment
from .errors import SettingsError, said
from .patching import PatchEngine, PatchSet
from .patching.patch import as_patch_set
from .plugins import Plugins
from .setting_values import boolean
from .settings import MODE_KEY, MODE_VARIABLE, Mode, Settings
from .startup import CHILD_VARIABLE
from .variables import SAID_VARIABLE

if TYPE_CHECKING:
    from .models.family import ModelFamily
    from .patching.report import PatchReport

logger = logging.getLogger("verl_mtp_plugin")

#: Armed even when the plugin is off: "off" must reach the other nodes, and verl must still know the key of the switch.
ALWAYS: Final = frozenset({"job.forward_mode", "job.config_flag"})
#: Armed besides while the environment holds a mistake: they refuse a job with MTP, and do nothing else.
GATES: Final = frozenset({"job.gate.engine", "job.gate.megatron_actor"})


class Runtime:
    """What :func:`verl_mtp_plugin.activate` and its siblings act on."""

    def __init__(self) -> None:
        self.environment = Environment()
        self.engine = PatchEngine(self.environment)
        self.settings = Settings()
        #: What the environment or activate() asked for: what a config does not say is from here, and not from an
        #: earlier config.
        self.base = Settings()
        #: The mistake in the environment for which nothing was armed; raised where MTP is used.
        self.fault: SettingsError | None = None
        self.active = False
        self._plugins: Plugins | None = None
        self._restricted = False  # the patch sets that are asked for are some of ours
        self._packages: dict[int, str] = {}  # who brought a patch set, by its identity; "" for our own
        self._lock = threading.RLock()

    def activate(self, settings: Settings | Mapping[str, Any] | str | None = None) -> PatchReport:
        self.arm(settings)
        return self.report()

    def arm(self, settings: Settings | Mapping[str, Any] | str | None = None) -> None:
        """Activate without a report: reading all versions would be half the cost at ``import verl``."""
        with self._lock:
            if settings is None and self.active:
                return
            self.base = wanted = _asked(settings)
            self.fault = None
            self.follow(wanted)

    def arm_or_hold(self) -> None:
        """Arm as the environment says; if it holds a mistake, arm nothing, and say so once.

        A job without MTP is none the worse for a misspelt option, so it is no error until MTP is used.
        """
        try:
            self.arm()
        except SettingsError as error:
            with self._lock:
                self.base = self.settings = Settings(Mode.OFF, "a mistake in the environment")
                self.fault = error
                self._arm(ALWAYS | GATES, "held back: " + said(error))
            if os.environ.get(SAID_VARIABLE) != str(error):
                os.environ[SAID_VARIABLE] = str(error)
                logger.warning(
                    "%s Until then verl works as released here, and a job with mtp.enable=True will be refused.", error
                )

    def follow(self, settings: Settings) -> None:
        """Do as ``settings`` say, which are from a config; :attr:`base` stays."""
        with self._lock:
            off = settings.mode is Mode.OFF
            if off and (self.active or self.fault is not None):
                self._stop(keep=ALWAYS)
            self.settings = settings
            self._arm(ALWAYS if off else None, f"{settings.source} is off")
            if not off:
                self.active = True
                os.environ[CHILD_VARIABLE] = "1"

    def settings_of(self, mtp: Any) -> Settings:
        """What one of verl's MtpConfigs (a dataclass or DictConfig) asks for, on top of the environment.

        Raises:
            SettingsError: the environment or ``mtp.plugin`` holds a mistake, and MTP is enabled.
        """
        value = mtp.get("plugin", None)
        if self.killed:
            return self.base
        if Settings.says_off(value):
            return replace(self.base, mode=Mode.OFF, source=MODE_KEY)
        try:
            if self.fault is not None:
                raise SettingsError(found=self.fault.found, expected=self.fault.expected, advice=self.fault.advice)
            return self.base.with_config(value)
        except SettingsError as error:
            if mtp.get("enable", False):
                raise
            if self.fault is None:
                _say_once(f"{error} Nobody uses it: MTP is off.")
            return self.base

    @property
    def killed(self) -> bool:
        """Whether the environment says ``off``: it wins over every config."""
        return self.base.mode is Mode.OFF and self.base.source == MODE_VARIABLE

    def _arm(self, only: frozenset[str] | None, reason: str) -> None:
        """Arm all patch sets, or those of ours with an id in ``only``; the others are skipped for ``reason``."""
        self._restricted = only is not None
        for package, patches in groupby(self._known_patches(), lambda patch: self._packages.get(id(patch), "")):
            chosen = [(only is None or (not package and patch.id in only), patch) for patch in patches]
            self.engine.skip([patch for kept, patch in chosen if not kept], reason, package=package)
            self.engine.arm([patch for kept, patch in chosen if kept], package=package)

    def _known_patches(self) -> list[PatchSet]:
        """The patch sets of all packages, our own first; of ours alone where nothing else is armed."""
        found = self._everybody(others=not self._restricted).patches_by_package(self.environment)
        sets = [(package, as_patch_set(item)) for package, items in found for item in items]
        self._packages = {id(patch_set): package for package, patch_set in reversed(sets)}  # the first has it
        return [patch_set for _, patch_set in sets]

    def _everybody(self, *, others: bool) -> Plugins:
        """The packages; with the plugin off, other people's are not even imported."""
        if self._plugins is None or (others and not self._plugins.complete):
            self._plugins = Plugins() if others else Plugins(())
        return self._plugins

    def deactivate(self) -> None:
        with self._lock:
            self._stop()

    def _stop(self, keep: frozenset[str] = frozenset()) -> None:
        self.active = False
        os.environ.pop(CHILD_VARIABLE, None)
        self.engine.revert_all(keep=keep)

    def models(self) -> list[ModelFamily]:
        with self._lock:
            return self._everybody(others=True).models()

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


def _asked(settings: Settings | Mapping[str, Any] | str | None) -> Settings:
    """What activate() was called with, on top of the environment, whose ``off`` wins."""
    source = "activate(...)"
    if isinstance(settings, Settings):
        environment = os.environ.get(MODE_VARIABLE, "")
        return Settings(Mode.OFF, MODE_VARIABLE) if boolean(environment) is False else settings
    if settings is not None and Settings.says_off(settings):
        return Settings().with_config(settings, source)
    found = Settings.from_environment()
    return found if found.mode is Mode.OFF else found.with_config(settings, source)


@functools.cache
def _say_once(text: str) -> None:
    logger.warning("%s", text)


_runtime = Runtime()

activate = _runtime.activate
arm = _runtime.arm
arm_or_hold = _runtime.arm_or_hold
follow = _runtime.follow
settings_of = _runtime.settings_of
deactivate = _runtime.deactivate
report = _runtime.report
models = _runtime.models


def require(patch_id: str) -> None:
    """See :func:`verl_mtp_plugin.require`."""
    _runtime.engine.require(patch_id)


def settings() -> Settings:
    """The settings that hold in this process: of the last activation or config."""
    return _runtime.settings
