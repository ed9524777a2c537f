"""What a session found, written to its file after every phase."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Phase:
    """One phase: values that were measured, and checks that hold or do not."""

    def __init__(self, rehearsal: bool = False) -> None:
        self._rehearsal = rehearsal
        self.values: dict[str, Any] = {}
        self.checks: dict[str, dict[str, Any]] = {}
        self.error = ""
        self.seconds = 0.0

    def note(self, **values: Any) -> None:
        self.values.update(values)

    def check(self, name: str, ok: Any, found: Any, wanted: str, *, gpu: bool = False) -> None:
        """``ok`` decides; ``found`` and ``wanted`` say what was compared. A rehearsal leaves out what needs a GPU."""
        if gpu and self._rehearsal:
            return
        self.checks[name] = {"ok": bool(ok), "found": found, "wanted": wanted}

    @property
    def ok(self) -> bool:
        return not self.error and all(check["ok"] for check in self.checks.values())

    def document(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "seconds": round(self.seconds, 2),
            "error": self.error,
            "checks": self.checks,
            "values": self.values,
        }


class Record:
    """All phases of one session.

    Args:
        path: of the session's JSON file.
        progress: file descriptor for lines to whoever waits.
    """

    def __init__(self, path: Path, progress: int, name: str) -> None:
        self._path, self._progress, self._name = path, progress, name
        self._begin = time.monotonic()
        self.phases: dict[str, Phase] = {}
        self.facts: dict[str, Any] = {}

    def say(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {self._name} {time.monotonic() - self._begin:6.1f} s  {text}\n"
        os.write(self._progress, line.encode())

    def done(self, name: str, phase: Phase) -> None:
        self.phases[name] = phase
        failed = [f"{key}: {c['found']}, wanted {c['wanted']}" for key, c in phase.checks.items() if not c["ok"]]
        outcome = "ok" if phase.ok else f"FAILED {phase.error} {'; '.join(failed)}"
        self.say(f"{name}: {outcome} ({phase.seconds:.1f} s)")
        self.write()

    def write(self) -> None:
        phases = {name: phase.document() for name, phase in self.phases.items()}
        document = {**self.facts, "seconds": round(time.monotonic() - self._begin, 1), "phases": phases}
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=1, default=str) + "\n")
        partial.replace(self._path)

    @property
    def ok(self) -> bool:
        return all(phase.ok for phase in self.phases.values())
