"""Runs commands that need some of a machine's GPUs, several side by side, in order of their importance."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.gpu.upstream import store

POLL_S: Final = 0.2
GRACE_S: Final = 20.0
MARGIN_S: Final = 25.0  # that a job ends itself before it would be ended


@dataclass(frozen=True)
class Job:
    """One command.

    Args:
        name: unique; also of its log.
        command: given to a shell, with ``CUDA_VISIBLE_DEVICES`` set; ``{left}`` in it is the seconds it may take.
        gpus: how many it needs.
        usual_s: how long it takes; with less time left it is not begun.
        after: names of jobs that must have ended well before.
    """

    name: str
    command: str
    gpus: int
    usual_s: float
    after: tuple[str, ...] = ()


@dataclass
class Outcome:
    """``status``: the exit status, ``None`` for a job that was not begun; ``why`` it was not, or was ended."""

    status: int | None = None
    why: str = ""
    gpus: list[int] = field(default_factory=list)
    began_s: float = 0.0
    seconds: float = 0.0


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    outcome: Outcome


class Schedule:
    """The jobs of one call.

    A job begins as soon as enough GPUs are free and those it comes after have ended well; an earlier one goes first.
    One that needs more GPUs than are free just now does not keep those behind it from theirs.

    Args:
        jobs: the most important first.
        gpus: their numbers.
        limit_s: for all together; what runs then is ended.
        folder: for logs, and for ``jobs.json``: those that ended well there are not run again.
    """

    def __init__(
        self, jobs: Sequence[Job], gpus: Sequence[int], limit_s: float, folder: Path, say: Callable[[str], None] = print
    ) -> None:
        self.jobs, self.free, self.limit_s, self.folder, self.say = jobs, list(gpus), limit_s, folder, say
        self.size, self.began, self.running = len(self.free), time.monotonic(), list[_Running]()
        folder.mkdir(parents=True, exist_ok=True)
        self.outcomes = self._known()

    def run(self) -> dict[str, Outcome]:
        """Until all have ended, or nothing more can be begun."""
        waiting = [job for job in self.jobs if job.name not in self.outcomes]
        try:
            while waiting or self.running:
                waiting = [job for job in waiting if not self._hopeless(job) and not self._begin(job)]
                time.sleep(POLL_S)
                self._collect()
        finally:
            for one in self.running:
                self._end(one, "interrupted")
            self._write()
        return self.outcomes

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def _hopeless(self, job: Job) -> bool:
        """Whether it can no longer be begun; its outcome then says why."""
        ended = [name for name in job.after if name in self.outcomes and self.outcomes[name].status != 0]
        left = self.limit_s - self.seconds
        if ended:
            why = f"{ended[0]} did not end well"
        elif job.gpus > self.size:
            why = f"needs {job.gpus} GPUs, there are {self.size}"
        elif left < job.usual_s:
            why = f"needs about {job.usual_s:.0f} s, {left:.0f} s are left"
        else:
            return False
        self.outcomes[job.name] = Outcome(why=why)
        self.say(f"{self.seconds:6.0f} s  {job.name}: not begun, {why}")
        return True

    def _begin(self, job: Job) -> bool:
        ready = all(name in self.outcomes for name in job.after)
        if not ready or job.gpus > len(self.free):
            return False
        gpus, self.free = sorted(self.free)[: job.gpus], sorted(self.free)[job.gpus :]
        command = job.command.replace("{left}", f"{self.limit_s - self.seconds - MARGIN_S:.0f}")
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
        with (self.folder / f"{job.name}.txt").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", command], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.running.append(_Running(job, process, Outcome(gpus=gpus, began_s=round(self.seconds, 1))))
        self.say(f"{self.seconds:6.0f} s  {job.name}: begins on {gpus}")
        return True

    def _collect(self) -> None:
        for one in list(self.running):
            if one.process.poll() is not None:
                self._end(one, "")
            elif self.seconds > self.limit_s:
                self._end(one, "no time left")

    def _end(self, one: _Running, why: str) -> None:
        _end_group(one.process)
        one.outcome.status, one.outcome.why = one.process.returncode, why
        one.outcome.seconds = round(self.seconds - one.outcome.began_s, 1)
        self.running.remove(one)
        self.free += one.outcome.gpus
        self.outcomes[one.job.name] = one.outcome
        self._write()
        shown = why or f"status {one.outcome.status}"
        self.say(f"{self.seconds:6.0f} s  {one.job.name}: {shown} after {one.outcome.seconds:.0f} s")

    def _known(self) -> dict[str, Outcome]:
        file = self.folder / "jobs.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        return {name: Outcome(**found) for name, found in known.items() if found["status"] == 0}

    def _write(self) -> None:
        file = self.folder / "jobs.json"
        found = {name: vars(outcome) for name, outcome in self.outcomes.items()}
        with store.alone(self.folder):  # others may run other jobs on other GPUs
            known = json.loads(file.read_text()) if file.is_file() else {}
            file.write_text(json.dumps(known | found, indent=1) + "\n")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """The process and all of its group. It is asked first, so that it can end those it has started itself."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def chosen(jobs: Iterable[Job], names: Sequence[str]) -> list[Job]:
    """Those whose names begin with one of ``names``, and all that they come after.

    Raises:
        ValueError: no job's name begins so.
    """
    known = {job.name: job for job in jobs}
    unknown = [name for name in names if not any(job.startswith(name) for job in known)]
    if unknown:
        raise ValueError(f"found --only {', '.join(unknown)}; expected beginnings of {', '.join(known)}")
    wanted = {name for name in known if any(name.startswith(part) for part in names)}
    while more := {before for name in wanted for before in known[name].after} - wanted:
        wanted |= more
    return [job for job in known.values() if job.name in wanted]
