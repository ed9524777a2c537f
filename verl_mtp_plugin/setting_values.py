"""How the value of each option is read, from text or from YAML."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from .errors import SettingsError

#: Objectives of the MTP loss, as :class:`verl_mtp_plugin.training.loss.Objective` has them.
LOSSES: Final = ("cross_entropy", "soft_cross_entropy", "total_variation")
#: Values of ``clip_grad`` that are no number; ``auto`` is one of ``check_drafter`` too.
AUTO, JOINT = "auto", "joint"
#: What to do about MTP weights that a Hugging Face checkpoint lacks: raise, or start from Megatron's initialisation.
MISSING_WEIGHTS: Final = ("error", "random")
#: What becomes of requests in flight when a weight sync begins.
REQUESTS: Final = ("abort", "retract")


def refuse(value: Any, source: str, expected: str) -> SettingsError:
    """The error for a value that ``source`` must not have."""
    return SettingsError(
        found=f"{source}={value!r}", expected=expected, advice=f"Correct {source} or leave it out for the default."
    )


def _choice(choices: tuple[str, ...]) -> Callable[[Any, str], str]:
    def parse(value: Any, source: str) -> str:
        name = str(value).strip().lower()
        if name not in choices:
            raise refuse(value, source, f"one of {', '.join(choices)}")
        return name

    return parse


def _count(least: int, what: str) -> Callable[[Any, str], int]:
    def parse(value: Any, source: str) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = least - 1
        if number < least:
            raise refuse(value, source, f"{what}, at least {least}")
        return number

    return parse


def _positive(value: Any) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if 0.0 < number < math.inf else None


def _seconds(value: Any, source: str) -> float:
    number = _positive(value)
    if number is None:
        raise refuse(value, source, "a positive number of seconds")
    return number


def _chunk(value: Any, source: str) -> int | None:
    return None if value is None else _count(1, "a number of tokens")(value, source)


def _clip(value: Any, source: str) -> float | str:
    text = str(value).strip().lower()
    if text in (AUTO, JOINT):
        return text
    limit = _positive(value)
    if limit is None:
        raise refuse(value, source, f"a positive number, {AUTO}, or {JOINT}")
    return limit


def _check(value: Any, source: str) -> bool | str:
    choices: dict[str, bool | str] = {AUTO: AUTO, "true": True, "false": False}
    text = str(value).strip().lower()
    if text not in choices:
        raise refuse(value, source, f"one of {', '.join(choices)}")
    return choices[text]


#: Option -> ``parse(value, source)``.
PARSERS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "loss": _choice(LOSSES),
    "loss_chunk_tokens": _chunk,
    "clip_grad": _clip,
    "missing_weights": _choice(MISSING_WEIGHTS),
    "sync_requests": _choice(REQUESTS),
    "sync_drain_timeout_s": _seconds,
    "sync_control_timeout_s": _seconds,
    "sync_transfer_timeout_s": _seconds,
    "sync_retries": _count(0, "a number of further attempts"),
    "check_drafter": _check,
}
