"""Ctrl-C during a weight sync, in a process of its own: one line at once, and its end within seconds.

The limits of the sync are minutes.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from verl_mtp_plugin.rollout.interrupt import GRACE_S, Interrupt

ROOT = Path(__file__).resolve().parents[2]
CALLERS = ("blocking", "awaited", "under_a_loop")
#: Imports and exit, on a machine that is busy with others.
SLACK_S = 8.0
#: A process that hears nothing would run for ever.
LIMIT_S = 60.0
UNDONE = "nothing is left half done. No weight was written: all other replicas serve their old weights again."


class Process:
    """One interrupted sync."""

    def __init__(self, step: str, caller: str) -> None:
        command = [sys.executable, "-m", "tests.unit.interrupted_sync", step, caller]
        pipe = subprocess.PIPE
        # A shell's background job ignores SIGINT, and so would the child of a test that runs in one.
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=_hears_interrupts
        )
        self._watch = threading.Timer(LIMIT_S, self._process.kill)
        self._watch.daemon = True
        self._watch.start()
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def interrupt(self, pause_s: float = 0.0, number: int = signal.SIGINT) -> None:
        time.sleep(pause_s)
        self._process.send_signal(number)

    def line(self) -> tuple[str, float]:
        """The next line, and how long it took."""
        assert self._process.stdout is not None
        start = time.monotonic()
        return self._process.stdout.readline(), time.monotonic() - start

    def end(self) -> tuple[int, float, str, str]:
        """Exit status, seconds, what it said, and its traceback's last line."""
        start = time.monotonic()
        try:
            said, errors = self._process.communicate(timeout=LIMIT_S)
        finally:
            self._watch.cancel()
            self._process.kill()
        lines = [line for line in errors.splitlines() if re.match(r"\w*(Error|Interrupt)", line)]
        return self._process.returncode, time.monotonic() - start, said, lines[-1] if lines else errors


def _hears_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(step: str, caller: str) -> dict[str, Any]:
    process = Process(step, caller)
    process.interrupt()
    first, seconds = process.line()
    status, left_s, said, error = process.end()
    assert seconds < 2
    assert first.startswith("verl-mtp-plugin: interrupted in a weight sync (")
    assert (status, error) == (-signal.SIGINT, "KeyboardInterrupt")
    return {"first": first, "seconds": left_s, "said": said}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(("step", "name"), [("pause", "pause"), ("drain", "drain"), ("release_kv", "kv_release")])
def test_before_the_transfer_everything_is_undone(step: str, name: str, caller: str) -> None:
    found = interrupted(step, caller)
    assert f"({name})" in found["first"]
    assert UNDONE in found["said"]
    assert "left [(False, True, 0, 'serving'), (False, True, 0, 'serving')]" in found["said"]
    assert found["seconds"] < SLACK_S  # no grace is needed


@pytest.mark.parametrize("caller", CALLERS)
def test_a_transfer_that_does_not_end_is_left_and_named(caller: str) -> None:
    found = interrupted("transfer", caller)
    assert "(transfer)" in found["first"]
    assert "replica 0, replica 1: transfer failed in attempt 1: UnansweredError: no answer when it was" in found["said"]
    assert "Given up: replica 0, replica 1." in found["said"]
    assert "left [(True, False, 0, 'bad'), (True, False, 0, 'bad')]" in found["said"]
    assert found["seconds"] < GRACE_S + SLACK_S


def test_a_transfer_that_ends_in_time_is_completed() -> None:
    found = interrupted("transfer that ends", "blocking")
    assert "nothing is left half done. All other replicas serve the new weights." in found["said"]
    assert "left [(False, True, 1, 'serving'), (False, True, 1, 'serving')]" in found["said"]


@pytest.mark.parametrize("step", ["resume_kv", "resume_generation"])
def test_after_the_transfer_who_does_not_answer_is_named(step: str) -> None:
    found = interrupted(step, "blocking")
    assert "Given up: replica 1." in found["said"]
    assert "(False, True, 1, 'serving')" in found["said"]
    assert found["seconds"] < 2 * GRACE_S + SLACK_S


@pytest.mark.parametrize("caller", CALLERS)
def test_a_second_one_ends_it_at_once(caller: str) -> None:
    process = Process("transfer", caller)
    process.interrupt()
    process.line()
    process.interrupt()
    status, seconds, said, _ = process.end()
    assert status in (-signal.SIGINT, 1)
    assert seconds < GRACE_S  # that it would have had
    assert "left [(True, False, 0, 'bad'), (True, False, 0, 'bad')]" in said or caller == "under_a_loop"


def test_sigterm_ends_it_as_ever() -> None:
    process = Process("transfer", "blocking")
    process.interrupt(number=signal.SIGTERM)
    assert process.end()[0] == -signal.SIGTERM


def test_who_handles_it_himself_keeps_it() -> None:
    known = signal.getsignal(signal.SIGINT)
    seen: list[int] = []

    def own(number: int, frame: Any) -> None:
        seen.append(number)

    signal.signal(signal.SIGINT, own)
    try:
        interrupt = Interrupt()
        interrupt.begin()
        assert signal.getsignal(signal.SIGINT) is own
        interrupt.end()
    finally:
        signal.signal(signal.SIGINT, known)


def test_without_one_everything_is_as_before() -> None:
    known = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        first, second = Interrupt(), Interrupt()
        first.begin()
        assert signal.getsignal(signal.SIGINT) == first._handle
        second.begin()  # another sync beside it leaves it alone
        second.end()
        assert signal.getsignal(signal.SIGINT) == first._handle
        first.end()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, known)
