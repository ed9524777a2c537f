"""``verl-mtp doctor``: what is installed, and what becomes of each patch.

Without ``--probe`` nothing of the stack is imported, so that the answer comes at once; patches then wait (``armed``).
With it a child process imports verl and every patched module, and reports what the engine really decided.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from .. import startup
from ..environment import Environment
from ..patching.patch import BROKEN, Decision
from ..tested import STOOD_IN, TESTED

#: The child prints its JSON after this line, since the imported packages print as they please.
MARKER = "verl-mtp-plugin report:"
PROBE_TIMEOUT_S = 600


@dataclass(frozen=True)
class Installed:
    """One distribution of the stack."""

    name: str
    version: str | None
    label: str  # tested, tested with a stand-in, untested, not installed, or "" where nothing is claimed


@dataclass(frozen=True)
class Findings:
    """All that the doctor found."""

    installed: list[Installed]
    report: dict[str, Any]  # PatchReport as JSON gives it
    problems: list[str]  # MTP would not work
    notes: list[str]  # worth knowing

    @property
    def status(self) -> int:
        """Exit status: 2 with problems, 1 with notes, else 0."""
        return 2 if self.problems else 1 if self.notes else 0

    def to_json(self) -> str:
        """The findings as JSON, with the exit status."""
        return json.dumps({**asdict(self), "status": self.status}, indent=2)


def examine(*, probe: bool) -> Findings:
    """Look at this environment."""
    installed = [_installed(name, version) for name, version in Environment().versions.items()]
    problems: list[str] = []
    notes = _version_notes(installed) + _loading_notes()
    report = _probed_report(notes, problems) if probe else _armed_report(problems)
    for plugin in report.get("plugins", []):
        if plugin["error"]:
            notes.append(f"plugin {plugin['name']!r} from {plugin['source']} is left out: {plugin['error']}")
    for patch in report.get("patches", []):
        if patch["decision"] in BROKEN:
            whose = f" of {patch['package']}" if patch["package"] else ""
            line = f"patch {patch['id']}{whose} is {patch['decision']}: {patch['detail']}"
            (problems if patch["critical"] else notes).append(line)
        elif patch["decision"] == Decision.LOST:
            notes.append(f"optimization {patch['id']} is lost here: {patch['detail']}")
    return Findings(installed, report, problems, notes)


def _installed(name: str, version: str | None) -> Installed:
    if version is None:
        return Installed(name, None, "not installed")
    if name not in TESTED:
        return Installed(name, version, "")
    tested = "tested with a stand-in" if name in STOOD_IN else "tested"
    return Installed(name, version, tested if version in TESTED[name] else "untested")


def _version_notes(installed: list[Installed]) -> list[str]:
    notes = []
    versions = {item.name: item.version for item in installed}
    for name in ("verl", "megatron-core"):
        if versions[name] is None:
            notes.append(f"{name} is not installed in this environment ({sys.prefix})")
    if versions["mbridge"] is None and versions["megatron-bridge"] is None:
        notes.append("neither mbridge nor megatron-bridge is installed; verl needs one to build a Megatron model")
    for item in installed:
        if item.label == "untested":
            notes.append(f"{item.name} {item.version} is untested; tested are {', '.join(TESTED[item.name])}")
    return notes


def _loading_notes() -> list[str]:
    notes = []
    if not startup.wanted():
        notes.append("VERL_USE_EXTERNAL_PLUGINS keeps this plugin out; add verl_mtp to it or unset it")
    if not startup.active():
        notes.append(
            "the start-up file is not active (not pip-installed, or python -S): verl < 0.9 needs it to load us"
        )
    return notes


def _armed_report(problems: list[str]) -> dict[str, Any]:
    from .. import activate, deactivate

    try:
        report: dict[str, Any] = json.loads(activate().to_json())
    except Exception as error:  # the doctor reports what every process of a job would run into
        problems.append(f"the plugin cannot be loaded: {error}")
        return {}
    deactivate()
    return report


def _probed_report(notes: list[str], problems: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "verl_mtp_plugin.cli.probe"]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, env=dict(os.environ), check=False
        )
    except subprocess.TimeoutExpired:
        problems.append(f"importing the stack took more than {PROBE_TIMEOUT_S} s")
        return {}
    _, found, payload = child.stdout.partition(MARKER)
    if not found:
        last = (child.stderr.strip().splitlines() or ["no output"])[-1]
        problems.append(f"the probe ended with status {child.returncode}: {last}")
        return {}
    answer = json.loads(payload)
    notes.extend(f"cannot import {name}: {error}" for name, error in answer["errors"].items())
    report: dict[str, Any] = answer["report"]
    return report
