"""The plugin's switch and options, from the environment and from verl's config.

In the config everything lies under one key: ``+actor_rollout_ref.model.mtp.plugin=strict``, or, with options,
``+actor_rollout_ref.model.mtp.plugin.mode=strict +actor_rollout_ref.model.mtp.plugin.loss=total_variation``. In the
environment: ``VERL_MTP_PLUGIN=strict VERL_MTP_PLUGIN_LOSS=total_variation``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from .errors import SettingsError
from .setting_values import AUTO, JOINT, LOSSES, MISSING_WEIGHTS, PARSERS, REQUESTS

__all__ = ["AUTO", "JOINT", "LOSSES", "MISSING_WEIGHTS", "MODE_KEY", "MODE_VARIABLE", "OPTION_VARIABLES"]
__all__ += ["REQUESTS", "VARIABLES", "Mode", "Settings"]

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
    source: str = "default"  # where the mode comes from
    loss: str = LOSSES[0]  # what the draft head is trained for
    loss_chunk_tokens: int | None = None  # tokens whose logits are alive at a time; None: as many as fit 320 MiB
    #: Largest norm of the MTP parameters' gradient, apart from the policy's; "auto": the policy's limit, apart if
    #: detach_encoder is set and with the policy otherwise; "joint": one norm over everything, as Megatron does.
    clip_grad: float | str = AUTO
    #: MTP weights that a Hugging Face checkpoint lacks: raise, or start from Megatron's initialisation.
    missing_weights: str = MISSING_WEIGHTS[0]
    #: Requests in flight when a weight sync begins: "abort" ends them, "retract" continues them after it.
    sync_requests: str = REQUESTS[0]
    sync_drain_timeout_s: float = 60.0  # until an engine is idle
    sync_control_timeout_s: float = 60.0  # pause, release and resume, each
    sync_transfer_timeout_s: float = 1800.0  # one attempt to send all weights
    sync_retries: int = 1  # further attempts after a transfer that failed
    check_drafter: bool | str = AUTO  # compare checksums of the drafter's weights after a sync; "auto": in strict mode

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
        parsed: dict[str, Any] = {name: PARSERS[name](value, source) for name, (value, source) in options.items()}
        return replace(self, **parsed)

    @property
    def checks_drafter(self) -> bool:
        """Whether the drafter's weights are compared after a sync."""
        return self.mode is Mode.STRICT if self.check_drafter == AUTO else bool(self.check_drafter)

    @property
    def options(self) -> dict[str, str]:
        """The options that differ from their default, as text."""
        chosen = {name: getattr(self, name) for name in OPTION_VARIABLES}
        return {name: str(value) for name, value in chosen.items() if value != getattr(_DEFAULT, name)}


def _mode(value: Any, source: str) -> Mode:
    if isinstance(value, bool):  # YAML 1.1 reads a bare off as False
        return Mode.AUTO if value else Mode.OFF
    return Mode.parse(str(value), source=source)


#: Environment variable of each option.
OPTION_VARIABLES: Final = {name: f"{MODE_VARIABLE}_{name.upper()}" for name in PARSERS}
#: All variables that Ray workers on other nodes must see too.
VARIABLES: Final = (MODE_VARIABLE, *OPTION_VARIABLES.values())
_DEFAULT: Final = Settings()
