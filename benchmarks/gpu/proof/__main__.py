"""The one command; the package says what it does."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from . import jobs, schedule

ROOT = Path(__file__).resolve().parents[3]


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.proof", description=__package__ and sys.modules[__package__].__doc__,
        formatter_class=formatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--examples", type=Path, required=True, help="a verl checkout, or its examples/mtp_trainer")
    add("--gpus", default="0", help="numbers, with commas")
    add("--limit", type=float, default=1500.0, help="seconds for everything")
    add("--only", default="", help="jobs whose names begin so, with commas, and what they need")
    add("--results", type=Path, default=ROOT / "benchmarks" / "gpu" / "results", help="folder for JSON and logs")
    add("--work", type=Path, default=Path("/tmp/verl-mtp-proof"), help="scratch folder")
    add("--plugin", type=Path, default=ROOT, help="repository or wheel of the plugin, for environments of the matrix")
    add("--plain", type=Path, help="an environment like this one without the plugin; else VERL_MTP_PLUGIN=off")
    add("--shared", action="store_true", help="others run on these GPUs too; for jobs that are not about time")
    add("--rehearse", action="store_true", help="on a machine without GPUs, with stand-ins; numbers mean nothing")
    add("--list", action="store_true", help="name the jobs, and run none")
    options = parser.parse_args()
    gpus = [int(number) for number in options.gpus.split(",")]
    setting = jobs.Setting(
        examples=options.examples.resolve(),
        results=options.results.resolve(),
        work=options.work.resolve(),
        plugin=options.plugin.resolve(),
        plain=options.plain and options.plain.absolute(),  # its Python is a link
        shared=options.shared,
        rehearse=options.rehearse,
    )
    all_jobs = jobs.jobs(setting)
    try:
        wanted = schedule.chosen(all_jobs, options.only.split(",")) if options.only else all_jobs
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for job in wanted:
            print(f"{job.name}  {job.gpus} GPUs, about {job.usual_s:.0f} s\n  {job.command}")
        return

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    logs = setting.results / "jobs"
    outcomes = schedule.Schedule(wanted, gpus, options.limit, logs, say).run()
    sys.exit(0 if all(outcomes[job.name].status == 0 for job in wanted) else 1)


if __name__ == "__main__":
    main()
