"""The plugin's switch and options, from the environment and from verl's config.

In the config everything lies under one key: ``+actor_rollout_ref.model.mtp.plugin=strict``, or, with options,
``+actor_rollout_ref.model.mtp.plugin.mode=strict +actor_rollout_ref.model.mtp.plugin.loss=total_variation``. In the
environment: ``VERL_MTP_PLUGIN=strict VERL_MTP_PLUGIN_LOSS=total_variation``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from .errors import SettingsError

#: Environment variable with the mode; forwarded to every Ray worker.
MODE_VARIABLE: Final = "VERL_MTP_PLUGIN"
#: The same switch in verl's config, for ``+actor_rollout_ref.model.mtp.plugin=...``.
MODE_KEY: Final = "actor_rollout_ref.model.mtp.plugin"
#: Objectives of the MTP loss, as :class:`verl_mtp_plugin.training.loss.Objective` has them.
LOSSES: Final = ("cross_entropy", "soft_cross_entropy", "total_variation")
#: Values of ``clip_grad`` that are no number.
AUTO, JOINT = "auto", "joint"
#: What to do about MTP weights that a Hugging Face checkpoint lacks: raise, or start from Megatron's initialisation.
MISSING_WEIGHTS: Final = ("error", "random")


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
    source: str = "default"  # where the mode comes from
    loss: str = LOSSES[0]  # what the draft head is trained for
    loss_chunk_tokens: int | None = None  # tokens whose logits are alive at a time; None: as many as fit 320 MiB
    #: Largest norm of the MTP parameters' gradient, apart from the policy's; "auto": the policy's limit, apart if
    #: detach_encoder is set and with the policy otherwise; "joint": one norm over everything, as Megatron does.
    clip_grad: float | str = AUTO
    missing_weights: str = MISSING_WEIGHTS[0]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings from :data:`MODE_VARIABLE` and the variables of the options.

        Raises:
            SettingsError: a variable holds no known value.
        """
        environ = os.environ if environ is None else environ
        settings = cls()
        text = environ.get(MODE_VARIABLE, "")
        if text.strip():
            settings = cls(Mode.parse(text, source=MODE_VARIABLE), MODE_VARIABLE)
        values = {name: (environ.get(variable, ""), variable) for name, variable in OPTION_VARIABLES.items()}
        return settings.with_options({name: value for name, value in values.items() if value[0].strip()})

    def with_config(self, value: Any) -> Settings:
        """These settings with what verl's config holds under :data:`MODE_KEY`: a mode, or a mapping with options.

        Raises:
            SettingsError: an unknown mode, option or value.
        """
        if not hasattr(value, "items"):
            return replace(self, mode=_mode(value, MODE_KEY), source=MODE_KEY)
        options = dict(value.items())
        mode = options.pop("mode", None)
        unknown = sorted(set(options) - set(OPTION_VARIABLES))
        if unknown:
            raise SettingsError(
                found=f"{MODE_KEY}.{unknown[0]}",
                expected=f"one of mode, {', '.join(OPTION_VARIABLES)}",
                advice="Correct the key or leave it out.",
            )
        settings = self.with_options({name: (value, f"{MODE_KEY}.{name}") for name, value in options.items()})
        return settings if mode is None else replace(settings, mode=_mode(mode, f"{MODE_KEY}.mode"), source=MODE_KEY)

    def with_options(self, options: Mapping[str, tuple[Any, str]]) -> Settings:
        """These settings with option values, each given with where it comes from."""
        parsed: dict[str, Any] = {name: _PARSERS[name](value, source) for name, (value, source) in options.items()}
        return replace(self, **parsed)

    @property
    def options(self) -> dict[str, str]:
        """The options that differ from their default, as text."""
        chosen = {name: getattr(self, name) for name in OPTION_VARIABLES}
        return {name: str(value) for name, value in chosen.items() if value != getattr(_DEFAULT, name)}


def _mode(value: Any, source: str) -> Mode:
    if isinstance(value, bool):  # YAML 1.1 reads a bare off as False
        return Mode.AUTO if value else Mode.OFF
    return Mode.parse(str(value), source=source)


def _refuse(value: Any, source: str, expected: str) -> SettingsError:
    return SettingsError(
        found=f"{source}={value!r}", expected=expected, advice=f"Correct {source} or leave it out for the default."
    )


def _choice(*choices: str) -> Callable[[Any, str], str]:
    """A parser of one word out of several."""

    def parse(value: Any, source: str) -> str:
        name = str(value).strip().lower()
        if name not in choices:
            raise _refuse(value, source, f"one of {', '.join(choices)}")
        return name

    return parse


def _parse_chunk(value: Any, source: str) -> int | None:
    if value is None:
        return None
    try:
        tokens = int(str(value))
    except ValueError:
        tokens = 0
    if tokens < 1:
        raise _refuse(value, source, "a number of tokens, at least 1")
    return tokens


def _parse_clip(value: Any, source: str) -> float | str:
    text = str(value).strip().lower()
    if text in (AUTO, JOINT):
        return text
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0.0 < limit < float("inf"):
        raise _refuse(value, source, f"a positive number, {AUTO}, or {JOINT}")
    return limit


_PARSERS: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    "loss": _choice(*LOSSES),
    "loss_chunk_tokens": _parse_chunk,
    "clip_grad": _parse_clip,
    "missing_weights": _choice(*MISSING_WEIGHTS),
}
#: Environment variable of each option.
OPTION_VARIABLES: Final = {name: f"{MODE_VARIABLE}_{name.upper()}" for name in _PARSERS}
#: All variables that Ray workers on other nodes must see too.
VARIABLES: Final = (MODE_VARIABLE, *OPTION_VARIABLES.values())
_DEFAULT: Final = Settings()
