"""The one command: a session with the plugin and one with verl as released, one JSON file, an exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from . import machine
from . import options as choices

ROOT: Final = Path(__file__).resolve().parents[3]
_SHM: Final = Path("/dev/shm")


def main() -> None:
    options = choices.parse()
    end = time.monotonic() + options.limit
    options.output.parent.mkdir(parents=True, exist_ok=True)
    begun = time.strftime("%Y-%m-%d %H:%M")
    document: dict[str, Any] = {"begun": begun, "rehearsal": options.rehearse, "sessions": {}}
    if options.output.exists():  # what is not played again stays
        old = json.loads(options.output.read_text())
        document = {**old, "begun": begun} if old["rehearsal"] is options.rehearse else document
    with tempfile.TemporaryDirectory(prefix="sync", dir=_SHM if os.access(_SHM, os.W_OK) else None) as folder:
        if options.rehearse:
            from . import rehearsal

            options.model = rehearsal.model(Path(folder) / "model")
        fine = True
        for session in options.sessions.split(","):
            if not choices.phases(options, session):
                continue
            fine = run(session, options, Path(folder), end) and fine
            _merge(document, session, options.output.with_suffix(f".{session}.json"), some=bool(options.phases))
            options.output.write_text(json.dumps(document, indent=1) + "\n")
    _say(f"{'all checks hold' if fine else 'FAILED'}: {options.output}")
    sys.exit(0 if fine else 1)


def run(session: str, options: Namespace, folder: Path, end: float) -> bool:
    """One session in a process of its own, ended in time; whether everything held."""
    output, log = (options.output.with_suffix(f".{session}.{kind}") for kind in ("json", "log"))
    output.unlink(missing_ok=True)
    mark = f"{os.getpid()}.{session}"
    gpu = machine.Gpu()
    before = gpu.used()
    modules = folder / "modules"  # where transformers keeps a model's own classes; actors get pickles of them
    path = os.pathsep.join(filter(None, (str(ROOT), str(modules), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "HF_MODULES_CACHE": str(modules),
        "PYTHONUNBUFFERED": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "VERL_MTP_PLUGIN": "auto" if session == "plugin" else "off",
        "VERL_MTP_STANDIN_FAULTS": str(folder / session / "faults"),
        machine.MARK: mark,
    }
    (folder / session / "faults").mkdir(parents=True)
    if options.rehearse:
        from . import rehearsal

        environment |= rehearsal.ENVIRONMENT
    command = [sys.executable, "-m", f"{__package__}.session", *_arguments(options, output)]
    progress = os.dup(sys.stdout.fileno())
    command += ["--session", session, "--progress", str(progress)]
    _say(f"{session}: {gpu.name}, {before:.0f} MiB in use; log: {log}")
    left = end - time.monotonic()
    with log.open("w") as lines:
        child = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=subprocess.STDOUT,
            pass_fds=[progress],
        )
        try:
            status = child.wait(max(1.0, left))
        except subprocess.TimeoutExpired:
            child.kill()
            status = child.wait()
            _say(f"{session}: ended after {left:.0f} s")
    os.close(progress)
    time.sleep(1)
    ended = machine.end_marked(mark)
    waited = time.monotonic()
    while gpu.used() > before + 512 and time.monotonic() < min(end, waited + 20):
        time.sleep(0.2)
    _say(f"{session}: exit status {status}, {ended} processes left over, {gpu.used():.0f} MiB in use")
    if status:
        print("".join(f"    {line}\n" for line in log.read_text(errors="replace").splitlines()[-40:]), flush=True)
    return status == 0


def _arguments(options: Namespace, output: Path) -> list[str]:
    passed = {
        "--model": options.model.resolve(),
        "--output": output.resolve(),
        "--phases": options.phases,
        "--syncs": options.syncs,
        "--bucket-mib": options.bucket_mib,
        "--attention": options.attention,
        "--sampling": options.sampling,
    }
    arguments = [f"{name}={value}" for name, value in passed.items()]
    if options.utilization:
        arguments.append(f"--utilization={options.utilization}")
    return [*arguments, "--rehearse"] if options.rehearse else arguments


def _merge(document: dict[str, Any], session: str, path: Path, *, some: bool) -> None:
    """What a session wrote; with ``some``, over the phases that an earlier run has left."""
    with suppress(FileNotFoundError):
        new = json.loads(path.read_text())
        old = document["sessions"].get(session, {}).get("phases", {}) if some else {}
        document["sessions"][session] = {**new, "phases": {**old, **new["phases"]}}
        path.unlink()


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
