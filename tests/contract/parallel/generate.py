"""Run every layout on every megatron-core, and write docs/results/parallel.json and its table in docs/RESULTS.md.

    python -m tests.contract.parallel.generate [--from DIR] [--check]

``--from``: results of test_parallel; what is missing is run. ``--check`` writes nothing, and fails if the committed
results say otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..generate import PAGE, processor
from ..stacks import MEGATRON_CORE, ROOT
from .checks import CHECKS
from .layouts import LAYOUTS
from .runner import run

RESULTS = ROOT / "docs" / "results" / "parallel.json"
BEGIN, END = "<!-- parallel:begin -->", "<!-- parallel:end -->"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.contract.parallel.generate")
    parser.add_argument("--from", dest="directory", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        document = collect(options.directory or Path(temporary))
    if options.check:
        committed = json.loads(RESULTS.read_text())
        same = passed(committed) == passed(document)
        shown = render(committed) in PAGE.read_text()  # as it was measured, whatever machine checks it
        if not (same and shown):
            print("Run `python -m tests.contract.parallel.generate` and commit docs/.", file=sys.stderr)
        return 0 if same and shown else 1
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    PAGE.write_text(insert(PAGE.read_text(), render(document)))
    return 0


def collect(directory: Path) -> dict[str, Any]:
    """One document of all releases."""
    found = {release: run(release, directory) for release in MEGATRON_CORE}
    versions = found[MEGATRON_CORE[-1]]["versions"]
    return {
        "command": "python -m tests.contract.parallel.generate",
        "hardware": processor(),
        "python": versions["python"],
        "torch": versions["torch"],
        "releases": {release: result["layouts"] for release, result in found.items()},
    }


def passed(document: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Release, layout and check of everything that holds."""
    return {
        (release, layout, check)
        for release, layouts in document["releases"].items()
        for layout, outcomes in layouts.items()
        for check, outcome in outcomes.items()
        if outcome["ok"]
    }


def insert(page: str, block: str) -> str:
    """``page`` with ``block`` between its markers; they are added at the end where the page has none."""
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n"
    head, rest = page.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{block}\n{END}{rest.split(END, 1)[1]}"


def render(document: dict[str, Any]) -> str:
    """The section: a row for each layout, and what is checked."""
    releases = list(document["releases"])
    head = " | ".join(("layout", "what it is", *releases))
    rows = [f"| {head} |", "|---" * (len(releases) + 2) + "|"]
    for layout in LAYOUTS:
        cells = [_score(document["releases"][release].get(layout.name)) for release in releases]
        rows.append("| " + " | ".join((f"`{layout.name}`", layout.says, *cells)) + " |")
    checks = ["| check | what it asks |", "|---|---|", *(f"| `{name}` | {c.says} |" for name, c in CHECKS.items())]
    return "\n\n".join(
        (
            "## Two processes",
            "Every layout on two processes (gloo, CPU), with the plugin, on real megatron-core: its schedules, "
            "`DistributedDataParallel` and `finalize_model_grads`. Gradients are compared with those of one process "
            "that holds the whole model and all batches, in fp64.",
            "\n".join(rows),
            "\n".join(checks),
            f"Python {document['python']}, torch {document['torch']}, fp32, {document['hardware']}. Made by "
            f"`{document['command']}`; all details in `results/parallel.json`.",
        )
    )


def _score(outcomes: dict[str, Any] | None) -> str:
    if outcomes is None:
        return "refused: packed MTP needs 0.16"
    return f"{sum(outcome['ok'] for outcome in outcomes.values())}/{len(outcomes)}"


if __name__ == "__main__":
    sys.exit(main())
