"""Starts a job's processes, ends them where they hang, starts new ones for the rest, and puts together the outcomes."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.upstream import process
from tests.contract.stacks import ROOT

from .layouts import Job

#: A check that writes nothing for so long hangs. Importing everything takes longest.
SILENCE_S: Final = 75.0
#: New processes for what is left are started so often.
STARTS: Final = 4
#: TransformerEngine's own words on what it attends with.
_BACKEND: Final = re.compile(r"Running with (.*)$")
ENVIRONMENT: Final = {
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # as Megatron wants it with tensor parallelism
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # the same bits twice
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
    "NVTE_DEBUG": "1",
    "NVTE_DEBUG_LEVEL": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


def run(
    job: Job,
    release: str,
    folder: Path,
    end: float,
    *,
    checks: str = "",
    rehearse: bool = False,
    silence_s: float = SILENCE_S,
) -> dict[str, Any]:
    """All of a job's checks, or as many as there was time for.

    Args:
        job: what is run, and where.
        release: of megatron-core, which this Python imports.
        folder: for logs and notes.
        end: ``time.monotonic()`` at which everything stops.
        checks: names with commas; all if empty.
        rehearse: with stand-ins, on a CPU.
        silence_s: seconds without a word after which a check hangs.

    Returns:
        ``versions``; ``layouts``: outcomes by layout and check (``ok``, ``detail``, ``seconds``); ``ended``:
        how each start that did not end well ended; ``complete``; ``seconds``; ``attention``: what ran, in words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"versions": {}, "layouts": {}, "ended": [], "complete": False, "attention": []}
    begun = time.monotonic()
    for number in range(STARTS):
        log, notes = (folder / f"{job.name}.{number}.{kind}" for kind in ("log", "jsonl"))
        notes.unlink(missing_ok=True)
        known = [f"{layout}/{name}" for layout, outcomes in result["layouts"].items() for name in outcomes]
        left = end - time.monotonic()
        if left < 5:
            break
        done = process.run(
            command(job, release, notes, known, checks, rehearse),
            environment(job, rehearse),
            ROOT, log, [] if rehearse else job.gpus, left, silence_s,
        )  # fmt: skip
        before = len(known)
        pending = _read(notes, result)
        result["attention"] = sorted({*result["attention"], *_attention(log)})
        if done.status == 0:
            result["complete"] = True
            break
        out_of_time = time.monotonic() >= end - 1
        how = "not finished in time" if out_of_time else "hangs" if done.timed_out else f"exit status {done.status}"
        result["ended"].append(f"{how}\n{log.read_text(errors='replace')[-1500:]}")
        if pending and not out_of_time:
            layout, name = pending
            detail = f"{how}: no outcome after {silence_s:.0f} s" if done.timed_out else f"the process ended: {how}"
            result["layouts"].setdefault(layout, {})[name] = {"ok": False, "detail": detail, "seconds": 0.0}
        if sum(map(len, result["layouts"].values())) == before:  # it did not come as far as a check
            break
    result["seconds"] = round(time.monotonic() - begun, 1)
    return result


def command(job: Job, release: str, notes: Path, known: Sequence[str], checks: str, rehearse: bool) -> list[str]:
    ranks = ["--standalone", "--nnodes=1", f"--nproc-per-node={len(job.gpus)}"]
    given = {
        "--megatron-core": release,
        "--plugin": job.plugin,
        "--layouts": ",".join(job.layouts),
        "--checks": checks,
        "--skip": ",".join(known),
        "--out": notes.resolve(),
    }
    arguments = [f"{name}={value}" for name, value in given.items()]
    worker = [f"{__package__}.worker", *arguments, *(["--rehearse"] if rehearse else [])]
    return [sys.executable, "-m", "torch.distributed.run", *ranks, "-m", *worker]


def environment(job: Job, rehearse: bool) -> dict[str, str]:
    """Beside the caller's, whose own settings win.

    NVLink multicast is left off unless the caller has it on: two ranks gain nothing by it.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    defaults = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    chosen = {**defaults, "PYTHONPATH": path, "VERL_MTP_PLUGIN": "auto" if job.plugin == "on" else "off"}
    chosen["NCCL_NVLS_ENABLE"] = os.environ.get("NCCL_NVLS_ENABLE", "0")
    return chosen | ({"GLOO_SOCKET_IFNAME": "lo"} if rehearse else {})


def _read(notes: Path, result: dict[str, Any]) -> list[str] | None:
    """Put the notes into ``result``; the check that was started and has no outcome."""
    pending: list[str] | None = None
    for text in notes.read_text().splitlines() if notes.exists() else ():
        line = json.loads(text) if text.endswith("}") else {}
        result["versions"] = line.get("versions", result["versions"])
        result["attention"] += [line["attention"]] if "attention" in line else []
        pending = line.get("started", pending)
        if "check" in line:
            outcome = {key: line[key] for key in ("ok", "detail", "seconds")}
            result["layouts"].setdefault(line["layout"], {})[line["check"]] = outcome
            pending = None
    return pending


def _attention(log: Path) -> set[str]:
    found = (_BACKEND.search(line) for line in log.read_text(errors="replace").splitlines())
    return {match[1].strip() for match in found if match}
