"""The one command: starts the variants' processes, gives each its turns, and writes costs.json."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.upstream import store
from tests.contract.stacks import ROOT

from . import options as choices

#: Least time to start something in.
LEAST_S: Final = 6.0
#: What both profiles need.
PROFILES_S: Final = 80.0


class Failed(RuntimeError):
    """A process said that it failed, ended, or said nothing in time."""


class Process:
    """One variant's process, which does one thing at a time."""

    def __init__(self, name: str, arguments: list[str], log: Path, number: int, end: float) -> None:
        variant = choices.VARIANTS[name]
        self.end = end
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {
            **os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "VERL_MTP_PLUGIN": variant.plugin, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29650 + number),
        }  # fmt: skip
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", *arguments, "--variant", name],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def ask(self, **order: Any) -> dict[str, Any]:
        """Do this, and wait for the answer.

        Raises:
            Failed: with the reason.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"the process has ended: {self.said()}") from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next one."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, self.end - time.monotonic())):
                raise Failed("no time left")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the process has ended: {self.said()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Failed(found["error"])
        return found

    def said(self) -> str:
        return Path(self._log.name).read_text(errors="replace")[-800:]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def main() -> None:
    options = choices.parse()
    begun = time.monotonic()
    end = begun + options.limit
    options.out.mkdir(parents=True, exist_ok=True)
    options.out = options.out.resolve()
    names = options.variants.split(",")
    found: dict[str, Any] = {name: {"series": {}} for name in names}
    arguments = _arguments(options)
    running = {
        name: Process(name, arguments, options.out / f"{name}.log", number, end) for number, name in enumerate(names)
    }

    def turn(name: str, what: str, **order: Any) -> dict[str, Any]:
        """Of a variant that has not failed; nothing from one that has."""
        if "error" in found[name]:
            return {}
        try:
            answer = running[name].ask(**order) if order else running[name].answer()
        except Failed as error:
            found[name]["error"] = f"{what}: {error}"
            say(f"{name}: {found[name]['error']}")
            return {}
        say(f"{name}: {what}, {time.monotonic() - begun:.0f} s since the start")
        return answer

    try:
        for name in names:
            found[name] |= turn(name, "imported")
        for name in names:
            found[name] |= turn(name, "loaded", do="load")
        last = end - LEAST_S - (PROFILES_S if options.profile else 0)
        for series, those in ((choices.MAIN, names), (choices.EXTRA, [n for n in names if n in choices.PROFILED])):
            for number in range(options.rounds):
                for one in series:
                    for name in those if number % 2 == 0 else reversed(those):
                        if time.monotonic() < last:
                            add(found[name]["series"], one, turn(name, one, do="measure", series=one))
        for name in choices.PROFILED if options.profile else ():
            if name in names and time.monotonic() < end - LEAST_S:
                file = options.out / f"profile_{name}.txt"
                found[name]["profile"] = turn(name, "profiled", do="profile", file=str(file))
    finally:
        for process in running.values():
            process.stop()
    document = {
        "rehearsal": options.rehearse, "hardware": store.hardware(), "tokens": options.tokens,
        "lengths": list(options.lengths), "small": choices.SMALL, "variants": found,
    }  # fmt: skip
    (options.out / "costs.json").write_text(store.as_text(document))
    complete = all("error" not in one and {*choices.MAIN} <= {*one["series"]} for one in found.values())
    say(f"{'complete' if complete else 'NOT COMPLETE'}: {options.out / 'costs.json'}")
    sys.exit(0 if complete else 1)


def _arguments(options: Any) -> list[str]:
    model = ["--model", str(options.model.resolve())] if options.model else []
    plain = [f"--{name}={getattr(options, name)}" for name in ("out", "tokens", "each")]
    lengths = ["--lengths", *map(str, options.lengths)]
    return [*model, *plain, *lengths, *(["--rehearse"] if options.rehearse else [])]


def add(known: dict[str, Any], name: str, answer: dict[str, Any]) -> None:
    """A round's samples, as columns, behind those of earlier rounds; of peaks the largest."""
    if not answer:
        return
    entry = known.setdefault(name, {"columns": {}, "peak_bytes": 0, "reserved_bytes": 0})
    for sample in answer["samples"]:
        for key, value in sample.items():
            entry["columns"].setdefault(key, []).append(round(value, 3))
    for key in ("peak_bytes", "reserved_bytes"):
        entry[key] = max(entry[key], answer[key])


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
