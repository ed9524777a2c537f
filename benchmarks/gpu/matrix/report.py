"""The section of docs/RESULTS.md from the releases' files.

python -m benchmarks.gpu.matrix.report DIR
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks import results_page

from .layouts import BY_NAME, RELEASES

NAME: Final = "gpu_matrix"
MODES: Final = {"on": "with", "off": "without"}
Document = dict[str, Any]


def collect(folder: Path) -> Document:
    """All releases in one document, with what is shown of each.

    Raises:
        SystemExit: no results, or rehearsed ones.
    """
    files = [file for name in RELEASES if (file := folder / f"{name}.json").exists()]
    found = [json.loads(file.read_text()) for file in files]
    if not found:
        raise SystemExit(f"no results in {folder}; expected some of {', '.join(f'{name}.json' for name in RELEASES)}")
    if any(document["rehearsal"] for document in found):
        raise SystemExit("rehearsed, which is no result")
    notes = folder / "notes.json"
    return {
        "notes": json.loads(notes.read_text()) if notes.exists() else [],
        "releases": {document["megatron_core"]: kept(document) for document in found},
    }


def kept(document: Document) -> Document:
    """Outcomes by plugin mode, layout and check; versions; what did not end well, without logs."""
    layouts: Document = {mode: {} for mode in MODES}
    for name, job in document["jobs"].items():
        layouts[name.rpartition("_")[2]] |= job["layouts"]
    jobs = document["jobs"].values()
    return {
        "versions": next((job["versions"] for job in jobs if job["versions"]), {}),
        "attention": sorted({text for job in jobs for text in job["attention"]}),
        "ended": [ended.splitlines()[0] for job in jobs for ended in job["ended"]],
        "complete": document["complete"],
        "seconds": max(job["seconds"] for job in jobs),
        "layouts": layouts,
    }


def render(document: Document) -> str:
    from .checks import CHECKS

    releases: Document = document["releases"]
    versions = next(iter(releases.values()))["versions"]
    shown = (f"{name} {versions[name]}" for name in ("verl", "torch", "nvidia-cudnn-cu13") if name in versions)
    te = next((versions[name] for name in ("transformer-engine-cu13", "transformer-engine") if name in versions), "")
    attention = sorted({text for release in releases.values() for text in release["attention"]})
    unfinished = [name for name, release in releases.items() if not release["complete"]]
    lines = [
        "## The matrix on GPUs",
        f"{versions.get('gpu')}; {', '.join(shown)}, TransformerEngine {te}: its layer spec, bf16, packed sequences "
        "(thd), NCCL, through Megatron's schedules and gradient reduction. *With* the plugin, and *without* it, which "
        "is verl as released. Gradients are those of one process in fp64 with the same weights, within 6% of a "
        "parameter's largest; zero and equal mean every bit. "
        f"Attention: {'; '.join(attention) or 'not reported'}.",
        table(releases),
        "How many of the releases pass each check, of those whose layout was run:",
        per_check(releases, CHECKS),
    ]
    failing = [
        f"- {release}, `{layout}`, `{name}`: {cut(outcome['detail'])}"
        for release, found in releases.items()
        for layout, outcomes in found["layouts"]["on"].items()
        for name, outcome in outcomes.items()
        if not outcome["ok"]
    ]
    lines += ["With the plugin these fail:\n\n" + "\n".join(failing)] if failing else []
    lines += [f"Not complete: {', '.join(unfinished)}."] if unfinished else []
    lines += document["notes"]
    lines.append(
        "`python -m benchmarks.gpu.matrix.all --plugin . --out DIR`; all details in `results/gpu_matrix.json`."
    )
    return "\n\n".join(lines)


def table(releases: Document) -> str:
    """A row for each release and layout."""
    lines = ["| megatron-core | layout | with | without | first symptom without |", "|---|---|---|---|---|"]
    for release, found in releases.items():
        for name, layout in BY_NAME.items():
            on, off = (found["layouts"][mode].get(name, {}) for mode in MODES)
            if on or off:
                symptom = next((f"`{n}`: {cut(o['detail'])}" for n, o in off.items() if not o["ok"]), "")
                lines.append(f"| {release} | {layout.says} | {score(on)} | {score(off)} | {symptom} |")
    return "\n".join(lines)


def per_check(releases: Document, checks: Document) -> str:
    """A row for each check, and a column for each layout with *with, without*."""
    lines = [f"| check | what it asks | {' | '.join(BY_NAME)} |", "|---" * (len(BY_NAME) + 2) + "|"]
    for name, check in checks.items():
        cells = []
        for layout in BY_NAME:
            both = []
            for mode in MODES:
                run = [
                    outcomes[name]["ok"]
                    for found in releases.values()
                    if name in (outcomes := found["layouts"][mode].get(layout, {}))
                ]
                both.append(f"{sum(run)}/{len(run)}" if run else "")
            cells.append(", ".join(filter(None, both)))
        lines.append(f"| `{name}` | {check.says} | {' | '.join(cells)} |")
    return "\n".join(lines)


def score(outcomes: Document) -> str:
    return f"{sum(outcome['ok'] for outcome in outcomes.values())}/{len(outcomes)}" if outcomes else "not run"


def cut(text: str, limit: int = 110) -> str:
    text = " ".join(text.removeprefix("rank 0: ").replace("|", "\\|").replace("<", "&lt;").split())
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."


def main() -> None:
    document = collect(Path(sys.argv[1]))
    results_page.write(NAME, document, render(document))
    print(f"{NAME}: written, {len(document['releases'])} releases")


if __name__ == "__main__":
    main()
