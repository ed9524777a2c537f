"""Write what the matrix found to docs/results/contract.json and, as tables, into docs/RESULTS.md.

python -m tests.contract.generate                   # run all cells with and without the plugin
python -m tests.contract.generate --from DIR        # use the results that test_matrix left in DIR
python -m tests.contract.generate --check --from DIR
                                                    # write nothing; fail if anything passes or fails otherwise
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import tables
from .runner import MODES, run
from .stacks import ROOT, Cell, cells

RESULTS = ROOT / "docs" / "results" / "contract.json"
PAGE = ROOT / "docs" / "RESULTS.md"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.contract.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is committed instead of writing it")
    parser.add_argument("--from", dest="directory", type=Path, help="results of test_matrix; what is missing is run")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        found = collect(options.directory or Path(temporary), options.jobs)
    if options.check:
        return check(found)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(tables.insert(PAGE.read_text() if PAGE.exists() else "", tables.render(found)))
    return 0


def collect(directory: Path, jobs: int) -> dict[str, Any]:
    """Run what is not yet in ``directory``, and put everything into one document."""
    todo = [(cell, mode) for cell in cells() for mode in MODES]
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda item: run(item[0], item[1], directory), todo))
    rows: dict[Cell, dict[str, Any]] = {}
    for (cell, mode), result in zip(todo, results, strict=True):
        row = rows.setdefault(cell, {"verl": cell.verl, "megatron_core": cell.megatron_core})
        row["verl_import_error"] = result["verl_import_error"]
        row[mode] = {
            kind: {
                "passed": [c["name"] for c in result["checks"] if c["kind"] == kind and c["ok"]],
                "failed": {c["name"]: c["detail"] for c in result["checks"] if c["kind"] == kind and not c["ok"]},
            }
            for kind in dict.fromkeys(check["kind"] for check in result["checks"])
        }
    versions = results[0]["versions"]
    return {
        "command": "python -m tests.contract.generate",
        "device": sorted({result["device_name"] for result in results}),
        "hardware": f"{processor()}, {os.cpu_count()} cores, one thread per cell",
        "python": versions["python"],
        "torch": versions["torch"],
        "cells": list(rows.values()),
    }


def processor() -> str:
    """The CPU's name, from Linux's own list where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def pattern(document: dict[str, Any]) -> set[tuple[str, ...]]:
    """Every check that passed, by cell and mode; and, marked so, every check that did not."""
    return {
        (row["verl"], row["megatron_core"], mode, kind, name, outcome)
        for row in document["cells"]
        for mode in MODES
        for kind, outcomes in row[mode].items()
        for outcome in ("passed", "failed")
        for name in outcomes[outcome]
    }


def check(found: dict[str, Any]) -> int:
    """Whether the committed results say the same, and the committed page shows them."""
    committed = json.loads(RESULTS.read_text())
    problems = [" ".join(("committed, not found:", *item)) for item in sorted(pattern(committed) - pattern(found))]
    problems += [" ".join(("found, not committed:", *item)) for item in sorted(pattern(found) - pattern(committed))]
    if tables.insert(PAGE.read_text(), tables.render(committed)) != PAGE.read_text():
        problems.append(f"{PAGE.name} does not show what {RESULTS.name} holds")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("Run `python -m tests.contract.generate` and commit docs/.", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
