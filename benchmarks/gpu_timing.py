"""Timing and peak memory of things that are compared with each other, taken in turns."""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

MIB = 2**20


@dataclass
class Series:
    """The samples of one contender."""

    milliseconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0  # largest allocation above what was allocated before
    error: str | None = None  # "out of memory", or why there are no samples

    def summary(self) -> dict[str, Any]:
        """Median, quartiles (ms), peak (MiB) and number of samples; or the error."""
        if self.error or not self.milliseconds:
            return {"error": self.error or "no time left"}
        times = sorted(self.milliseconds)
        low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
        return {
            "ms": round(statistics.median(times), 3), "quartiles_ms": [round(low, 3), round(high, 3)],
            "peak_mib": round(self.peak_bytes / MIB, 1), "samples": len(times),
        }  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """``run`` is measured; ``before`` comes right before it and is not."""

    run: Callable[[], Any]
    before: Callable[[], Any] = lambda: None


class Meter:
    """One run: CUDA events and allocator statistics on a GPU, the clock alone on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def sample(self, contender: Contender) -> tuple[float, int]:
        """Milliseconds, and bytes at the peak above what was allocated before."""
        contender.before()
        if not self.cuda:
            started = time.perf_counter()
            contender.run()
            return 1e3 * (time.perf_counter() - started), 0
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        begin.record()
        contender.run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end), torch.cuda.max_memory_allocated() - allocated

    def free(self) -> None:
        """Give cached blocks back, so that one contender's do not get in another's way."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def in_turns(
    device: torch.device,
    contenders: Mapping[str, Contender],
    *,
    rounds: int,
    each: int = 1,
    free: bool = False,
    deadline: float = float("inf"),
) -> dict[str, Series]:
    """Sample all contenders ``rounds`` times ``each``, in turns, every second round backwards.

    Args:
        device: where they run.
        contenders: by name. One that raises is out, with its error.
        rounds: how often each has its turn; one more comes first to warm up and is not counted.
        each: samples per turn, after one that is not counted if ``free``.
        free: give cached memory back before each turn.
        deadline: ``time.monotonic()`` after which no new round starts.
    """
    meter, series = Meter(device), {name: Series() for name in contenders}
    for turn in range(rounds + 1):
        if turn > 1 and time.monotonic() > deadline:
            break
        for name in list(contenders) if turn % 2 else reversed(list(contenders)):
            found = series[name]
            if found.error:
                continue
            if free:
                meter.free()
            try:
                for number in range(each + free if turn else 1):
                    milliseconds, peak = meter.sample(contenders[name])
                    if turn and number >= free:
                        found.milliseconds.append(milliseconds)
                        found.peak_bytes = max(found.peak_bytes, peak)
            except torch.OutOfMemoryError:
                found.error = "out of memory"
            except Exception as error:  # a contender that fails is a result
                found.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if found.error:
                meter.free()  # outside of the handler, whose traceback held the tensors
                say(f"    {name}: {found.error}")
    return series


def ratios(ours: Series, other: Series) -> dict[str, Any]:
    """Of samples taken in the same round: median and quartiles of ours / other."""
    pairs = [a / b for a, b in zip(ours.milliseconds, other.milliseconds) if b]
    if ours.error or other.error or len(pairs) < 2:
        return {"error": ours.error or other.error or "no time left"}
    low, middle, high = statistics.quantiles(pairs, n=4)
    return {"ratio": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)], "pairs": len(pairs)}


def say(text: str) -> None:
    """Progress, at once."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)
