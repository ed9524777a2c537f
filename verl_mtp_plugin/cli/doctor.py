"""``verl-mtp doctor``: what is installed, and what becomes of each patch.

Without ``--probe`` nothing of the stack is imported, so that the answer comes at once; patches then wait (``armed``).
With it a child process imports verl and every patched module, and reports what the engine really decided.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .. import startup
from ..environment import Environment, metadata_version
from ..imported import checkout
from ..patching.patch import BROKEN, Decision
from ..tested import STOOD_IN, TESTED

_OTHER_PYTHON = "run verl-mtp with the Python of your training job"
#: The child prints its JSON after this line, since the imported packages print as they please.
MARKER = "verl-mtp-plugin report:"
#: And this before each module that it imports.
IMPORTING = "verl-mtp-plugin imports:"
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
    checkouts: dict[str, str]  # distribution -> folder, where that is imported and was not installed there

    @property
    def status(self) -> int:
        """Exit status: 2 with problems, 1 with notes, else 0."""
        return 2 if self.problems else 1 if self.notes else 0

    def to_json(self) -> str:
        """The findings as JSON, with the exit status."""
        return json.dumps({**asdict(self), "status": self.status}, indent=2)


def examine(*, probe: bool) -> Findings:
    """Look at this environment, as a job that is started in this directory with ``python -m`` finds it."""
    with _working_directory_first():
        installed = [_installed(name, version) for name, version in Environment().versions.items()]
        checkouts = {item.name: str(folder) for item in installed if (folder := checkout(item.name))}
        problems: list[str] = []
        notes = _version_notes(installed) + _checkout_notes(installed, checkouts) + _loading_notes()
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
    return Findings(installed, report, problems, notes, checkouts)


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
    """``verl-mtp`` is a script, whose path begins with its own directory; that of ``python -m`` with this one."""
    here = os.getcwd()
    if getattr(sys.flags, "safe_path", False) or here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _checkout_notes(installed: list[Installed], checkouts: dict[str, str]) -> list[str]:
    """Where a checkout is imported in place of another version that is installed."""
    notes = []
    for item in installed:
        other = metadata_version(item.name)
        if item.name in checkouts and other is not None and other != item.version:
            notes.append(
                f"{item.name} {item.version} is imported from {checkouts[item.name]}, and not the installed {other}"
            )
    return notes


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
            notes.append(f"{name} is not installed in this environment ({sys.prefix}); {_OTHER_PYTHON}")
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
    from .. import activate, deactivate, report, runtime

    try:
        activate()
        runtime.models()  # a package may be at fault in that hook, too
        found: dict[str, Any] = json.loads(report().to_json())
    except Exception as error:  # the doctor reports what every process of a job would run into
        problems.append(str(error))
        return {}
    deactivate()
    return found


def _probed_report(notes: list[str], problems: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "verl_mtp_plugin.cli.probe"]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, env=dict(os.environ), check=False
        )
    except subprocess.TimeoutExpired as error:
        problems.append(f"importing {_last(error.stdout, IMPORTING) or 'the stack'} took over {PROBE_TIMEOUT_S} s")
        return {}
    payload = _last(child.stdout, MARKER)
    if not payload:
        last = (child.stderr.strip().splitlines() or ["no output"])[-1]
        doing = _last(child.stdout, IMPORTING)
        importing = f", while it imported {doing}" if doing else ""
        problems.append(f"the probe ended with status {child.returncode}{importing}: {last}")
        return {}
    answer = json.loads(payload)
    for name, why in answer["roots"].items():
        missing = name == "megatron.core" and why.startswith("ModuleNotFoundError: No module named 'megatron")
        if not missing:  # that it is not installed is a note already
            problems.append(f"{name} cannot be imported: {why}; install it, or {_OTHER_PYTHON}")
    for why, names in _by_error(answer["errors"]).items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        notes.append(f"cannot import {names[0]}{more}: {why}")
    report: dict[str, Any] = answer["report"]
    return report


def _last(output: str | bytes | None, marker: str) -> str:
    """What follows the marker on the last line that begins with it; "" if none does."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    lines = [line for line in text.splitlines() if line.startswith(marker)]
    return lines[-1].removeprefix(marker).strip() if lines else ""


def _by_error(errors: dict[str, str]) -> dict[str, list[str]]:
    """The modules that cannot be imported for one reason, by that reason."""
    found: dict[str, list[str]] = {}
    for name, error in errors.items():
        found.setdefault(error, []).append(name)
    return found
