"""The machine: memory of the GPU by its driver, of processes by the kernel, and processes that were left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

MIB: Final = 1 << 20
#: In the environment of every process of a run, so that none is left behind.
MARK: Final = "VERL_MTP_BENCHMARK"


class Gpu:
    """GPU 0 by NVML, which makes no CUDA context. Without one, zeros."""

    def __init__(self) -> None:
        self._nvml: Any = None
        with suppress(Exception):
            import pynvml  # type: ignore[import-not-found]

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            self._nvml = pynvml

    @property
    def name(self) -> str:
        return str(self._nvml.nvmlDeviceGetName(self._handle)) if self._nvml else "none"

    def used(self) -> float:
        """MiB in use, of all processes."""
        return self._memory().used / MIB if self._nvml else 0.0

    def total(self) -> float:
        """MiB."""
        return self._memory().total / MIB if self._nvml else 0.0

    def settled(self, seconds: float = 0.3) -> float:
        """The least MiB in use within so many seconds."""
        end, least = time.monotonic() + seconds, self.used()
        while time.monotonic() < end and self._nvml:
            time.sleep(0.02)
            least = min(least, self.used())
        return least

    def _memory(self) -> Any:
        return self._nvml.nvmlDeviceGetMemoryInfo(self._handle)


class Watch:
    """Least and most memory in use while something happens, in MiB."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._end = gpu, threading.Event()
        self.least = self.most = gpu.used()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._end.wait(0.003):
            used = self._gpu.used()
            self.least, self.most = min(self.least, used), max(self.most, used)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._end.set()
        self._thread.join()


def resident(pid: int) -> dict[str, float]:
    """MiB of a process and of its children: private and shared pages in memory."""
    import psutil  # type: ignore[import-untyped]

    server = psutil.Process(pid)
    children = server.children(recursive=True)
    return {
        "server": server.memory_info().rss / MIB,
        "children": sum(child.memory_info().rss for child in children) / MIB,
    }


def marked(mark: str) -> list[int]:
    """Processes with this mark in their environment, but this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def end_marked(mark: str) -> int:
    """Kill what a session has left; how many processes that was."""
    left = marked(mark)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)
