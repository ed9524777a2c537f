"""Faults that a test injects into stand-ins in other processes: small files in a directory that a variable names.

A fault is for one step of an engine or a transfer, for a number of times or until it is cleared.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Final

#: Names the directory; set for the driver, inherited by all that it starts.
VARIABLE: Final = "VERL_MTP_STANDIN_FAULTS"
#: Steps of the stand-in engine. "drain" is no message: while it is BUSY the engine never becomes idle.
ENGINE_STEPS: Final = (
    "generate",
    "abort",
    "pause",
    "continue",
    "flush",
    "release",
    "resume",
    "begin",
    "update",
    "end",
    "drain",
)
#: Steps of the file transfer.
TRANSFER_STEPS: Final = ("prepare", "init", "send", "receive", "finalize")


class Fault(str, Enum):
    """What goes wrong."""

    FAIL = "fail"  # the step answers that it failed, or raises where its caller is told
    HANG = "hang"  # the step never answers
    DIE = "die"  # the process raises where nobody is told
    BUSY = "busy"  # something is still in flight when the step begins


def set_fault(step: str, fault: Fault, times: int | None = None) -> None:
    """Inject ``fault`` into ``step``, ``times`` times or until :func:`clear_faults`.

    Raises:
        ValueError: no such step.
    """
    if step not in (*ENGINE_STEPS, *TRANSFER_STEPS):
        raise ValueError(f"no step {step!r}: {', '.join((*ENGINE_STEPS, *TRANSFER_STEPS))}")
    path = _directory() / step
    partial = path.with_suffix(".partial")
    partial.write_text(f"{fault.value} {'' if times is None else times}")
    partial.replace(path)


def clear_faults() -> None:
    """Forget all of them."""
    for path in _directory().iterdir():
        path.unlink(missing_ok=True)


def peek(step: str) -> Fault | None:
    """The fault of ``step`` that is set now, without counting."""
    found = _read(step)
    return found[0] if found else None


def take(step: str) -> Fault | None:
    """The fault of ``step``, counted as happening now."""
    found = _read(step)
    if found is None:
        return None
    fault, times = found
    if times is not None and times <= 1:
        (_directory() / step).unlink(missing_ok=True)
    elif times is not None:
        set_fault(step, fault, times - 1)
    return fault


def _directory() -> Path:
    path = Path(os.environ[VARIABLE])
    path.mkdir(parents=True, exist_ok=True)
    return path


def _read(step: str) -> tuple[Fault, int | None] | None:
    if VARIABLE not in os.environ:
        return None
    try:
        text = (Path(os.environ[VARIABLE]) / step).read_text()
    except FileNotFoundError:
        return None
    fault, _, times = text.partition(" ")
    return Fault(fault), int(times) if times else None
