"""Runs a script with a time limit, a log whose lines say when they came, and the GPUs' memory beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

SAMPLE_MS: Final = 200
GRACE_S: Final = 15.0


@dataclass
class Finished:
    """How a run ended. ``memory`` holds (seconds since the start, MiB) of each of its GPUs."""

    status: int
    seconds: float
    timed_out: bool
    log: Path
    memory: dict[int, list[tuple[float, int]]] = field(default_factory=dict)


def run(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, gpus: Sequence[int],
    limit_s: float, silence_s: float,
) -> Finished:  # fmt: skip
    """Run ``command`` in ``folder`` with ``gpus`` visible.

    Its group is ended after ``limit_s`` seconds, or ``silence_s`` seconds without a line: a run that hangs costs as
    much as one that works.
    """
    chosen = {**os.environ, **environment}
    if gpus:
        chosen["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, _physical(gpus)))
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with _memory(_physical(gpus), started) as memory:
        process = subprocess.Popen(
            list(command), env=chosen, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        heard = [time.monotonic()]
        reader = threading.Thread(target=_copy, args=(process.stdout, log, started, heard), daemon=True)
        reader.start()
        timed_out = False
        while process.poll() is None and not timed_out:
            time.sleep(0.2)
            now = time.monotonic()
            timed_out = now - started > limit_s or now - heard[0] > silence_s
        _end(process)
        reader.join(GRACE_S)
    return Finished(process.returncode, time.monotonic() - started, timed_out, log, memory)


def _physical(gpus: Sequence[int]) -> list[int]:
    """Of those that this process may see."""
    visible = [int(part) for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip().isdigit()]
    return [visible[gpu] if visible else gpu for gpu in gpus]


def _copy(stream: IO[str], log: Path, started: float, heard: list[float]) -> None:
    with log.open("w", encoding="utf-8") as file:
        for line in stream:
            heard[0] = time.monotonic()
            file.write(f"{heard[0] - started:8.2f} {line}")
            file.flush()


def _end(process: subprocess.Popen[str]) -> None:
    """What is left of the process and its group: Ray's daemons follow the driver that started them."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, kind)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
        if kind is signal.SIGTERM:
            time.sleep(0.5)


@contextlib.contextmanager
def _memory(gpus: Sequence[int], started: float) -> Iterator[dict[int, list[tuple[float, int]]]]:
    """Sample whole-GPU memory in a thread for as long as the block runs. Nothing without nvidia-smi."""
    samples: dict[int, list[tuple[float, int]]] = {gpu: [] for gpu in gpus}
    if not gpus or shutil.which("nvidia-smi") is None:
        yield {}
        return
    command = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits", "-lms", str(SAMPLE_MS)]
    process = subprocess.Popen([*command, "-i", ",".join(map(str, gpus))], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    stream = process.stdout

    def read() -> None:
        for line in stream:
            index, _, used = line.partition(",")
            with contextlib.suppress(ValueError, KeyError):
                samples[int(index)].append((round(time.monotonic() - started, 2), int(used)))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        process.terminate()
        process.wait()
        thread.join(GRACE_S)


def wait_until_free(gpus: Sequence[int], mib: int = 1500, limit_s: float = 45.0) -> bool:
    """Whether ``gpus`` hold less than ``mib`` MiB within ``limit_s`` seconds: the run before has let go of them."""
    if shutil.which("nvidia-smi") is None or not gpus:
        return True
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i"]
    deadline = time.monotonic() + limit_s
    while True:
        shown = subprocess.run([*command, ",".join(map(str, _physical(gpus)))], capture_output=True, text=True)
        used = [int(line) for line in shown.stdout.split() if line.strip().isdigit()]
        if not used or max(used) < mib:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(1.0)
