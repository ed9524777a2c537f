"""The plugin's switch and options, from the environment and from verl's config.

In the config everything lies under one key: ``+actor_rollout_ref.model.mtp.plugin=strict``, or, with options,
``+actor_rollout_ref.model.mtp.plugin.mode=strict +actor_rollout_ref.model.mtp.plugin.loss=total_variation``. In the
environment: ``VERL_MTP_PLUGIN=strict VERL_MTP_PLUGIN_LOSS=total_variation``. Both are read by one grammar
(:mod:`.setting_values`).

The config goes over the environment, but for ``off``, which wins wherever it stands, over any mistake beside it too. A
mistake, be it a misspelt variable, is named at once, and ends a job with MTP; without MTP nobody uses the option, and
verl works as released. The options of one MtpConfig are not those of a later one (:mod:`.job.configs`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Final

from .errors import SettingsError, shown
from .setting_values import AUTO, JOINT, LOSSES, MISSING_WEIGHTS, PARSERS, REQUESTS, boolean, is_null
from .variables import MODE_VARIABLE, OPTION_VARIABLES, VARIABLES, misspelt

__all__ = ["AUTO", "JOINT", "LOSSES", "MISSING_WEIGHTS", "MODE_KEY", "MODE_VARIABLE", "OPTION_VARIABLES"]
__all__ += ["REQUESTS", "VARIABLES", "Mode", "Settings"]

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
    def parse(cls, value: Any, *, source: str) -> Mode:
        """The mode that ``value`` names; a boolean is auto or off.

        Raises:
            SettingsError: ``value`` is not one of auto, strict, off.
        """
        switch = boolean(value)
        if switch is not None:
            return cls.AUTO if switch else cls.OFF
        try:
            return cls(value.strip().lower())
        except (ValueError, AttributeError):
            raise SettingsError(
                found=f"{source}={shown(value)}",
                expected=f"one of {', '.join(mode.value for mode in cls)}",
                advice=f"Correct {source} or leave it out (the default is auto).",
            ) from None


@dataclass(frozen=True, slots=True)
class Settings:
    """What one activation was asked for.

    Raises:
        SettingsError: a field has a value that it must not have.
    """

    mode: Mode = Mode.AUTO
    source: str = "default"  # where the mode comes from
    loss: str = LOSSES[0]  # what the draft head is trained for
    loss_chunk_tokens: int | None = None  # tokens whose logits are alive at a time; None: as many as fit 320 MiB
    #: Largest norm of the MTP parameters' gradient, apart from the policy's; "auto": the policy's limit, apart if
    #: detach_encoder is set and with the policy otherwise; "joint": one norm over everything, as Megatron does.
    clip_grad: float | str = AUTO
    #: MTP weights that a Hugging Face checkpoint lacks: raise, or start from Megatron's initialization.
    missing_weights: str = MISSING_WEIGHTS[0]
    #: Requests in flight when a weight sync begins: "abort" ends them, "retract" continues them after it.
    sync_requests: str = REQUESTS[0]
    sync_drain_timeout_s: float = 60.0  # until an engine is idle
    sync_control_timeout_s: float = 60.0  # pause, release and resume, each
    sync_transfer_timeout_s: float = 1800.0  # one attempt to send all weights
    sync_retries: int = 1  # further attempts after a transfer that failed
    check_drafter: bool | str = AUTO  # compare checksums of the drafter's weights after a sync; "auto": in strict mode

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", Mode.parse(self.mode, source="Settings.mode"))
        for name in PARSERS:
            object.__setattr__(self, name, _parsed(name, getattr(self, name), f"Settings.{name}"))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings from :data:`MODE_VARIABLE` and the variables of the options. ``off`` wins over all else there.

        Raises:
            SettingsError: a variable holds no known value, or its name is misspelt.
        """
        environ = os.environ if environ is None else environ
        settings = cls()
        text = environ.get(MODE_VARIABLE, "")
        if not is_null(text):
            settings = cls(Mode.parse(text, source=MODE_VARIABLE), MODE_VARIABLE)
        if settings.mode is Mode.OFF:
            return settings
        for name, nearest in misspelt(environ).items():
            raise SettingsError(
                found=f"the environment variable {name}",
                expected=f"one of {', '.join(VARIABLES)}",
                advice=f"Unset it, or call it {nearest}.",
            )
        values = {name: (environ.get(variable, ""), variable) for name, variable in OPTION_VARIABLES.items()}
        return settings.with_options({name: value for name, value in values.items() if value[0].strip()})

    def with_config(self, value: Any, source: str = MODE_KEY) -> Settings:
        """These settings with what verl's config holds under :data:`MODE_KEY`: a mode, or a mapping with options.

        Where the mode is ``off``, nobody uses the options, and nothing is wrong with them.

        Args:
            source: what the value is called in messages.

        Raises:
            SettingsError: an unknown mode, option or value.
        """
        if is_null(value):
            return self
        if not hasattr(value, "items"):
            return replace(self, mode=Mode.parse(value, source=source), source=source)
        keys = list(value.keys())
        settings = self
        if "mode" in keys and not is_null(value["mode"]):
            settings = replace(self, mode=Mode.parse(value["mode"], source=f"{source}.mode"), source=source)
        if settings.mode is Mode.OFF:
            return settings
        unknown = [key for key in keys if key != "mode" and key not in OPTION_VARIABLES]
        if unknown:
            raise SettingsError(
                found=f"{source}.{unknown[0]}",
                expected=f"one of mode, {', '.join(OPTION_VARIABLES)}",
                advice=f"Correct the key or leave it out{_nearest(unknown[0])}.",
            )
        return settings.with_options({key: (value[key], f"{source}.{key}") for key in keys if key != "mode"})

    @staticmethod
    def says_off(value: Any) -> bool:
        """Whether what a config holds (a mode, or a mapping) turns the plugin off, whatever else it holds."""
        if hasattr(value, "items"):
            value = value["mode"] if "mode" in list(value.keys()) else None
        return boolean(value) is False

    def with_options(self, options: Mapping[str, tuple[Any, str]]) -> Settings:
        """These settings with option values, each given with where it comes from."""
        parsed: dict[str, Any] = {name: _parsed(name, value, source) for name, (value, source) in options.items()}
        return replace(self, **parsed)

    @property
    def checks_drafter(self) -> bool:
        """Whether the drafter's weights are compared after a sync."""
        return self.mode is Mode.STRICT if self.check_drafter == AUTO else bool(self.check_drafter)

    @property
    def options(self) -> dict[str, str]:
        """The options that differ from their default, as text."""
        chosen = {name: getattr(self, name) for name in OPTION_VARIABLES}
        return {name: str(value) for name, value in chosen.items() if value != _DEFAULTS[name]}

    def __str__(self) -> str:
        """The mode and the options that differ from their default, for messages."""
        return ", ".join((str(self.mode), *(f"{name}={value}" for name, value in self.options.items())))


def _nearest(key: Any) -> str:
    from difflib import get_close_matches

    near = get_close_matches(str(key), OPTION_VARIABLES, 1)
    return f" (the nearest is {near[0]})" if near else ""


def _parsed(name: str, value: Any, source: str) -> Any:
    return _DEFAULTS[name] if is_null(value) else PARSERS[name](value, source)


_DEFAULTS: Final[dict[str, Any]] = {field.name: field.default for field in fields(Settings)}
