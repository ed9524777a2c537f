"""What a process of a stack has answered, asked once per run: the processes of pytest-xdist share it.

A process that failed, or did not end in time, is not asked again either: every test that needs it fails at once.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Answers:
    """Where pytest-xdist's processes find them; None where there is one process."""

    folder: Path | None = None


def shared(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of strings whose result is JSON."""

    def attempt(*arguments: str, **releases: str) -> str:
        try:
            return json.dumps({"value": ask(*arguments, **releases)})
        except (AssertionError, subprocess.TimeoutExpired) as error:
            return json.dumps({"error": str(error)})

    @functools.cache
    def outcome(*arguments: str, **releases: str) -> dict[str, Any]:
        if Answers.folder is None:
            return dict(json.loads(attempt(*arguments, **releases)))
        question = json.dumps([ask.__module__, ask.__name__, arguments, releases])
        answer = Answers.folder / f"{hashlib.sha256(question.encode()).hexdigest()[:24]}.json"
        with answer.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not answer.exists():
                answer.write_text(attempt(*arguments, **releases))
        return dict(json.loads(answer.read_text()))

    @functools.wraps(ask)
    def once(*arguments: str, **releases: str) -> Any:
        found = outcome(*arguments, **releases)
        if "error" in found:
            raise AssertionError(found["error"])
        return found["value"]

    return once
