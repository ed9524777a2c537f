"""The plugin's switch, from the environment and from verl's config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from .errors import SettingsError

#: Environment variable with the mode; forwarded to every Ray worker.
MODE_VARIABLE: Final = "VERL_MTP_PLUGIN"
#: The same switch in verl's config, for ``+actor_rollout_ref.model.mtp.plugin=...``.
MODE_KEY: Final = "actor_rollout_ref.model.mtp.plugin"


class Mode(str, Enum):
    """How much the plugin may do, and how strict it is about it."""

    AUTO = "auto"  # patch what is broken; fail only where MTP would run wrongly
    STRICT = "strict"  # besides: any patch that is unsupported or failed stops the job, as does an uneven cluster
    OFF = "off"  # verl as it was released

    def __str__(self) -> str:
        return self.value

    @classmethod
    def parse(cls, text: str, *, source: str) -> Mode:
        """The mode named by ``text``.

        Raises:
            SettingsError: ``text`` is not one of auto, strict, off.
        """
        try:
            return cls(text.strip().lower())
        except ValueError:
            raise SettingsError(
                found=f"{source}={text!r}",
                expected=f"one of {', '.join(mode.value for mode in cls)}",
                advice=f"Correct {source} or leave it out (the default is auto).",
            ) from None


@dataclass(frozen=True, slots=True)
class Settings:
    """What one activation was asked for."""

    mode: Mode = Mode.AUTO
    source: str = "default"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings from :data:`MODE_VARIABLE`.

        Raises:
            SettingsError: the variable holds no known mode.
        """
        text = (os.environ if environ is None else environ).get(MODE_VARIABLE, "")
        if not text.strip():
            return cls()
        return cls(Mode.parse(text, source=MODE_VARIABLE), MODE_VARIABLE)
