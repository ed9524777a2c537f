"""How the value of each option is read: one grammar for environment variables and for verl's config.

- A **number** is written in ASCII digits, with an optional sign, single underscores between digits, a fraction and an
  exponent: ``1000``, ``+1_000``, ``1e3``, ``.5``. A leading zero (``010``), other notations (``0x10``), other scripts'
  digits, ``nan`` and ``inf`` are refused, and so is ``true`` where a number belongs. A count is any number without a
  fraction, so ``1e3`` and ``5.0`` are counts. Counts and seconds are at most 1e9.
- A **boolean** is ``true``, ``yes``, ``on``, ``1`` or ``false``, ``no``, ``off``, ``0``. For the mode, they mean
  ``auto`` and ``off``; YAML 1.1 reads a bare ``off`` as false.
- A **word** is one of its choices. Case and spaces around a value do not matter anywhere.
- ``null`` is the option's default. An empty environment variable is none.

YAML reads an unquoted value before we do: ``010``, ``0x10``, ``0b1``, ``1:30`` and ``1__0`` reach us as the numbers 8,
16, 1, 90 and 10.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from .errors import SettingsError, shown

#: Objectives of the MTP loss, as :class:`verl_mtp_plugin.training.loss.Objective` has them.
LOSSES: Final = ("cross_entropy", "soft_cross_entropy", "total_variation")
#: Values of ``clip_grad`` that are no number; ``auto`` is one of ``check_drafter`` too.
AUTO, JOINT = "auto", "joint"
#: What to do about MTP weights that a Hugging Face checkpoint lacks: raise, or start from Megatron's initialization.
MISSING_WEIGHTS: Final = ("error", "random")
#: What becomes of requests in flight when a weight sync begins.
REQUESTS: Final = ("abort", "retract")

TRUE: Final = ("true", "yes", "on", "1")
FALSE: Final = ("false", "no", "off", "0")
#: The most of anything that is counted, seconds included: what lies above is a slip, and too much for a timer.
MOST: Final = 10**9

_DIGITS: Final = "[0-9](?:_?[0-9])*"
_NUMBER: Final = re.compile(
    rf"[+-]?(?:(?:0|[1-9](?:_?[0-9])*)(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?[0-9]+)?", re.ASCII
)


def refuse(value: Any, source: str, expected: str) -> SettingsError:
    """The error for a value that ``source`` must not have."""
    return SettingsError(
        found=f"{source}={shown(value)}", expected=expected, advice=f"Correct {source} or leave it out for the default."
    )


def is_null(value: Any) -> bool:
    """Whether a value stands for the default."""
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "null"))


def boolean(value: Any) -> bool | None:
    """A boolean as either door writes it; None if it is none."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower() if isinstance(value, int | str) else ""
    return True if text in TRUE else False if text in FALSE else None


def number(value: Any) -> Decimal | None:
    """A number as either door writes it, exactly; None if it is none, or not finite."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if isinstance(value, float):
        return Decimal(repr(float(value))) if math.isfinite(value) else None
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        try:
            return Decimal(value.strip())
        except ArithmeticError:  # an exponent beyond all bounds
            return None
    return None


def _choice(choices: tuple[str, ...]) -> Callable[[Any, str], str]:
    def parse(value: Any, source: str) -> str:
        name = value.strip().lower() if isinstance(value, str) else ""
        if name not in choices:
            raise refuse(value, source, f"one of {', '.join(choices)}")
        return name

    return parse


def _count(least: int, what: str) -> Callable[[Any, str], int]:
    def parse(value: Any, source: str) -> int:
        found = number(value)
        if found is None or not least <= found <= MOST or found != int(found):
            raise refuse(value, source, f"{what}, at least {least} and at most {MOST}")
        return int(found)

    return parse


def _positive(value: Any, most: float) -> float | None:
    found = number(value)
    if found is None or not 0 < found <= Decimal(most):
        return None
    return float(found) or None  # 1e-400 is no float


def _seconds(value: Any, source: str) -> float:
    seconds = _positive(value, MOST)
    if seconds is None:
        raise refuse(value, source, f"a positive number of seconds, at most {MOST}")
    return seconds


def _clip(value: Any, source: str) -> float | str:
    text = value.strip().lower() if isinstance(value, str) else ""
    if text in (AUTO, JOINT):
        return text
    limit = _positive(value, 1e300)
    if limit is None:
        raise refuse(value, source, f"a positive number, {AUTO}, or {JOINT}")
    return limit


def _check(value: Any, source: str) -> bool | str:
    if isinstance(value, str) and value.strip().lower() == AUTO:
        return AUTO
    chosen = boolean(value)
    if chosen is None:
        raise refuse(value, source, f"one of {AUTO}, true, false")
    return chosen


#: Option -> ``parse(value, source)``, for a value that is not :func:`null <is_null>`.
PARSERS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "loss": _choice(LOSSES),
    "loss_chunk_tokens": _count(1, "a number of tokens"),
    "clip_grad": _clip,
    "missing_weights": _choice(MISSING_WEIGHTS),
    "sync_requests": _choice(REQUESTS),
    "sync_drain_timeout_s": _seconds,
    "sync_control_timeout_s": _seconds,
    "sync_transfer_timeout_s": _seconds,
    "sync_retries": _count(0, "a number of further attempts"),
    "check_drafter": _check,
}
