"""Where the time of a training step goes, as text: by the GPU, by PyTorch's operators, by Python."""

from __future__ import annotations

import cProfile
import io
import pstats
import re
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity

TOP: Final = 25
STEPS: Final = 3
SERIES: Final = "step"
#: Kernels by what they are for, by a part of their names; the first that fits.
KINDS: Final = {
    "attention": r"fmha|flash|cudnn.*(sdpa|attention)|sdpa|thd_",
    "matrix products": r"gemm|cutlass|nvjet|cublas|xmma|wgmma",
    "collectives": r"nccl",
    "norms": r"norm|ln_",
    "optimizer": r"adam|multi_tensor|l2norm",
    "loss and log-probs": r"softmax|cross_entropy|nll|logsumexp",
    "copies": r"memcpy|memset|copy|cat",
}


def write(bench: Any, file: Path, title: str) -> dict[str, Any]:
    """Profile a few warm steps; the text goes to ``file``, the sums are returned."""
    with bench.mode(SERIES):
        for _ in range(2):
            bench.sample(SERIES)
        plain = [bench.sample(SERIES)["ms"] for _ in range(STEPS)]
        batches = [bench.batch(SERIES) for _ in range(STEPS)]
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=activities) as profiler:
            begun = time.perf_counter()
            for batch in batches:
                bench.run(SERIES, batch)
            torch.cuda.synchronize()
            traced = 1e3 * (time.perf_counter() - begun) / STEPS
        python = cProfile.Profile()
        batch = bench.batch(SERIES)
        python.enable()
        bench.run(SERIES, batch)
        torch.cuda.synchronize()
        python.disable()
    averages = profiler.key_averages()
    kernels = [
        event
        for event in averages
        if event.device_type != torch.autograd.DeviceType.CPU and not getattr(event, "is_user_annotation", False)
    ]
    busy = sum(event.self_device_time_total for event in kernels) / 1e3 / STEPS
    launches = sum(event.count for event in kernels) / STEPS
    sums = {
        "ms_unprofiled": round(sum(plain) / STEPS, 2),
        "ms_profiled": round(traced, 2),
        "gpu_busy_ms": round(busy, 2),
        "kernels_and_copies": round(launches),
        "gpu_ms_by_kind": by_kind(kernels),
        "cuda_calls": {
            event.key: {"count": round(event.count / STEPS, 1), "ms": round(event.self_cpu_time_total / 1e3 / STEPS, 2)}
            for event in averages
            if event.key.startswith(("cuda", "cu")) and event.device_type == torch.autograd.DeviceType.CPU
        },
    }
    parts = [
        f"{title}: {STEPS} training steps of about {bench.options.tokens} tokens, one micro-batch. Per step:",
        "\n".join(f"  {name}: {value}" for name, value in sums.items()),
        f"By GPU time, all steps, top {TOP}:",
        table(averages, "self_cuda_time_total"),
        f"By CPU time, all steps, top {TOP}:",
        table(averages, "self_cpu_time_total"),
        f"By Python's time in the main thread, one step, top {TOP}:",
        functions(python),
    ]
    file.write_text("\n\n".join(parts) + "\n")
    return sums


def table(averages: Any, key: str) -> str:
    text: str = averages.table(sort_by=key, row_limit=TOP, max_name_column_width=90)
    return text


def by_kind(kernels: list[Any]) -> dict[str, float]:
    """Milliseconds of a step."""
    found: dict[str, float] = {}
    for event in kernels:
        kind = next((name for name, part in KINDS.items() if re.search(part, event.key, re.IGNORECASE)), "other")
        found[kind] = found.get(kind, 0.0) + event.self_device_time_total / 1e3 / STEPS
    return {name: round(value, 2) for name, value in sorted(found.items(), key=lambda item: -item[1])}


def functions(profile: cProfile.Profile) -> str:
    stream = io.StringIO()
    pstats.Stats(profile, stream=stream).strip_dirs().sort_stats("cumulative").print_stats(TOP)
    return stream.getvalue().strip()
