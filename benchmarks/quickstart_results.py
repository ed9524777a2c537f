"""Writes what quickstart runs have found into docs/RESULTS.md, and keeps the first one's picture.

python3.11 noxfile.py quickstart -- --seed 0 --out runs/0    # and so on for each seed
python benchmarks/quickstart_results.py runs/0 runs/1 runs/2
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import results_page


def row(name: str, seed: int, measured: dict[str, Any]) -> str:
    accepted = " | ".join(f"{measured['acceptance'][temperature]:.1%}" for temperature in ("0", "1"))
    return f"| {seed} | {name} | {accepted} | {measured['draft_loss']:.3f} |"


def rows(run: dict[str, Any]) -> list[str]:
    seed, plan, courses = run["plan"]["seed"], run["plan"], run["courses"]
    return [
        row("random weights", seed, courses["main"]["measured"][0]),
        row(f"baseline: {plan['steps_main']} steps of the main model", seed, courses["main"]["measured"][-1]),
        row(f"control: {plan['steps_mtp']} steps more, MTP not trained", seed, courses["control"]["measured"][-1]),
        row(f"**{plan['steps_mtp']} steps more, MTP trained**", seed, courses["trained"]["measured"][-1]),
    ]


def main() -> None:
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        raise SystemExit(__doc__)
    runs = [json.loads((folder / "quickstart.json").read_text()) for folder in folders]
    failed = [check["name"] for run in runs for check in run["checks"] if not check["passed"]]
    if failed:
        raise SystemExit("checks failed: " + "; ".join(failed))
    first = runs[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    checks = "\n".join(f"- {check['name']}: {check['found']}" for check in first["checks"])
    seconds = " and ".join(f"{run['seconds']:.0f} s" for run in runs)
    table = "\n".join(line for run in runs for line in rows(run))
    section = f"""
## Quickstart: does the draft get right?

verl's real Megatron engine trains a tiny MiMo on toy text on a CPU. How often the MTP draft is the token then drawn (T=0: the likeliest, T=1: sampled), on {first["plan"]["held_out"]} held-out problems, and the draft's loss there in nats per token. The honest baseline is the value after the main-only phase. This shows the mechanism, not a speed-up.

| seed | after | T=0 | T=1 | draft loss |
|---|---|---:|---:|---:|
{table}

![acceptance and losses, seed {first["plan"]["seed"]}](results/quickstart.png)

What held in each run, with seed {first["plan"]["seed"]}'s numbers:

{checks}

Runs of {seconds}. {versions}. {results_page.hardware()}. `python3.11 noxfile.py quickstart -- --seed N`.
"""  # noqa: E501
    results_page.write(
        "quickstart", {"runs": [{k: v for k, v in run.items() if k != "patches"} for run in runs]}, section
    )
    shutil.copy(folders[0] / "quickstart.png", results_page.RESULTS / "quickstart.png")


if __name__ == "__main__":
    main()
