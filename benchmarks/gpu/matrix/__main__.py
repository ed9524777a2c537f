"""One release of megatron-core, the one of the running Python: all jobs, one JSON file, an exit status.

    python -m benchmarks.gpu.matrix --megatron-core 0.16.1 --gpus 2 --out DIR

Exit status 1 unless every check holds with the plugin. DIR/logs keeps what the processes said.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import runner
from .layouts import RELEASES, VERL, Job, jobs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--megatron-core", required=True, help=f"the installed release, of {', '.join(RELEASES)}")
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder for RELEASE.json")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for everything")
    parser.add_argument("--silence", type=float, default=runner.SILENCE_S, help="seconds after which a check hangs")
    parser.add_argument("--jobs", default="", help="names, with commas; all by default, in place of earlier outcomes")
    parser.add_argument("--checks", default="", help="names, with commas; all by default")
    parser.add_argument("--one-by-one", action="store_true", help="no two jobs at once on the same GPUs")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, with stand-ins")
    options = parser.parse_args()
    end = time.monotonic() + options.limit
    file = options.out / f"{options.megatron_core}.json"
    chosen = [job for job in jobs(options.gpus) if not options.jobs or job.name in options.jobs.split(",")]

    def run(job: Job) -> dict[str, Any]:
        found = runner.run(
            job, options.megatron_core, options.out / "logs" / options.megatron_core, end,
            checks=options.checks, rehearse=options.rehearse, silence_s=options.silence,
        )  # fmt: skip
        print(f"{time.strftime('%H:%M:%S')} {options.megatron_core} {job.name}: {summary(found)}", flush=True)
        return found

    with ThreadPoolExecutor(1 if options.one_by_one or options.rehearse else len(chosen)) as pool:
        found = dict(zip((job.name for job in chosen), pool.map(run, chosen)))
    document: dict[str, Any] = {"megatron_core": options.megatron_core, "verl": VERL, "rehearsal": options.rehearse}
    if options.jobs and file.exists():
        found = {**json.loads(file.read_text())["jobs"], **found}
    document["jobs"] = found
    document["complete"] = all(job.name in found and found[job.name]["complete"] for job in jobs(options.gpus))
    file.write_text(json.dumps(document, indent=1) + "\n")
    failing = sum(not outcome["ok"] for name, job in found.items() if name.endswith("_on") for outcome in outcomes(job))
    sys.exit(0 if document["complete"] and not failing else 1)


def outcomes(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [outcome for layout in found["layouts"].values() for outcome in layout.values()]


def summary(found: dict[str, Any]) -> str:
    """In one line; the first start that ended badly, where that is all there is."""
    every = outcomes(found)
    text = f"{sum(outcome['ok'] for outcome in every)} of {len(every)} hold, {found['seconds']} s"
    if found["complete"]:
        return text
    return f"{text}, NOT COMPLETE: {found['ended'][-1] if found['ended'] else 'no time'}"


if __name__ == "__main__":
    main()
