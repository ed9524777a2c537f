"""A process may see several MtpConfigs of verl: the actor's, its rollout's copy, a critic's, a teacher's.

Settings hold for the whole process. So each config with MTP on is followed as it stands: options of an earlier one do
not stay. Two that ask for different things while both are in use are an error; where only one of them asks, the change
is said, and a model that is being trained keeps what it is trained with. A config with MTP off says nothing about
those with MTP on.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .. import runtime
from ..errors import SettingsError
from ..settings import MODE_KEY, Settings

logger = logging.getLogger("verl_mtp_plugin")


class _Followed:
    """A config with MTP on that was followed; it is in use as long as somebody holds it, as a worker does its own."""

    def __init__(self, mtp: Any, settings: Settings) -> None:
        self.settings = settings
        self.explicit = _is_explicit(mtp)
        self.trained = False  # a model was built to be trained by these settings
        self.alive: Callable[[], Any] = lambda: None  # what cannot be watched is taken for gone
        with contextlib.suppress(TypeError):
            self.alive = weakref.ref(mtp)


_followed: list[_Followed] = []


def follow(mtp: Any) -> None:
    """Let this process's settings be those that the config asks for.

    Raises:
        SettingsError: MTP is enabled, and ``mtp.plugin`` or the environment holds a mistake, or the config contradicts
            another one that is in use.
    """
    wanted, enabled, explicit = runtime.settings_of(mtp), bool(mtp.get("enable", False)), _is_explicit(mtp)
    _followed[:] = [each for each in _followed if each.alive() is not None]
    if not enabled and (_followed or not explicit):
        return
    if not _gives_way(wanted, explicit):
        return
    if not _same(wanted, runtime.settings()):
        runtime.follow(wanted)
    if enabled and all(each.alive() is not mtp for each in _followed):
        _followed.append(_Followed(mtp, wanted))


def _gives_way(wanted: Settings, explicit: bool) -> bool:
    """Whether all configs that are in use let this one be followed."""
    for other in _followed:
        if _same(wanted, other.settings):
            continue
        if explicit and (other.explicit or other.trained):
            raise SettingsError(
                found=f"two MtpConfigs in use in one process, of which one asks for ({other.settings}) and the other "
                f"for ({wanted})",
                expected="the same mode and options in all, since they hold for the whole process",
                advice=f"Give all models of the job the same {MODE_KEY.rpartition('.')[2]!r} under `mtp`, or set "
                "mtp.enable=False where MTP is not used.",
            )
        if other.trained:
            _say(
                f"a model is trained with ({other.settings}) here; a later MtpConfig that says nothing changes nothing"
            )
            return False
        _say(f"the settings of this process were ({other.settings}) and are now ({wanted}), by a later MtpConfig")
    return True


def in_training() -> None:
    """A model is being built to be trained by the settings that hold now."""
    for each in _followed:
        each.trained = each.trained or _same(each.settings, runtime.settings())


def _is_explicit(mtp: Any) -> bool:
    return mtp.get("plugin", None) is not None


def _same(one: Settings, other: Settings) -> bool:
    """Whether two ask for the same, wherever it stands."""
    return replace(one, source=other.source) == other


@functools.cache
def _say(text: str) -> None:
    logger.warning("verl-mtp-plugin: %s", text)
