"""The section of docs/RESULTS.md from costs.json.

python -m benchmarks.gpu.costs.report DIR
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks import results_page

from .options import SAYS, VARIANTS

NAME: Final = "gpu_costs"
PARTS: Final = ("before", "forward", "backward", "optimizer", "after")
GIB: Final = 2**30
Document = dict[str, Any]


def summary(entry: Document) -> Document:
    """Medians, quartiles and peak of a series."""
    times = entry["columns"]["ms"]
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    parts = {name: statistics.median(entry["columns"][name]) for name in PARTS if name in entry["columns"]}
    return {
        "ms": middle, "quartiles": [low, high], "samples": len(times), "parts": parts,
        "peak_gib": entry["peak_bytes"] / GIB, "reserved_gib": entry["reserved_bytes"] / GIB,
    }  # fmt: skip


def rows(document: Document) -> list[tuple[str, str, Document]]:
    """Series, variant and summary of everything that was measured."""
    variants = document["variants"]
    return [
        (series, name, summary(variants[name]["series"][series]))
        for series in SAYS
        for name in VARIANTS
        if series in variants.get(name, {}).get("series", {})
    ]


def render(document: Document) -> str:
    variants = document["variants"]
    versions = next(iter(variants.values())).get("facts", {}).get("versions", {})
    found = rows(document)
    base = {series: one["ms"] for series, name, one in found if name == "no_mtp"}
    lines = [
        "| what | model | ms, median (quartiles) | of that without MTP | peak, GiB | parts, ms |",
        "|---|---|---|---|---|---|",
    ]
    for series, name, one in found:
        share = f"{one['ms'] / base[series]:.3f}" if series in base else ""
        shares = ", ".join(f"{part} {value:.1f}" for part, value in one["parts"].items())
        low, high = one["quartiles"]
        cells = (SAYS[series], VARIANTS[name].title, f"{one['ms']:.1f} ({low:.1f} to {high:.1f})", share)
        lines.append(f"| {' | '.join(cells)} | {one['peak_gib']:.2f} | {shares} |")
    failed = [f"- {VARIANTS[name].title}: {one['error']}" for name, one in variants.items() if "error" in one]
    profiles = [
        f"- {VARIANTS[name].title}: {one['profile']['ms_unprofiled']} ms a step, of which the GPU is busy "
        f"{one['profile']['gpu_busy_ms']}: "
        + ", ".join(f"{kind} {value}" for kind, value in one["profile"]["gpu_ms_by_kind"].items())
        for name, one in variants.items()
        if one.get("profile")
    ]
    shortest, longest = document["lengths"]
    parameters = next((one["parameters"] for one in variants.values() if "parameters" in one), 0)
    gpus = ", ".join(document["hardware"]["gpus"][:1])
    parts = [
        "## What MTP costs in verl's engine",
        f"verl's Megatron engine with an optimizer on {gpus}: "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}; bf16, packed sequences; "
        f"{parameters / 1e6:.0f}M parameters without MTP; {document['tokens']:,} tokens a step in sequences of "
        f"{shortest} to {longest}. All variants in turns on one GPU; {found[0][2]['samples'] if found else 0} samples. "
        "*backward* has log-probs and loss in it.",
        "\n".join(lines),
        *(["Where a training step's time goes, by the profiler:\n\n" + "\n".join(profiles)] if profiles else []),
        *(["Failed:\n\n" + "\n".join(failed)] if failed else []),
        *document.get("notes", ()),
        "`python -m benchmarks.gpu.costs --model MODEL --out DIR --profile`; `results/gpu_costs.json`.",
    ]
    return "\n\n".join(parts)


def main() -> None:
    document: Document = json.loads((Path(sys.argv[1]) / "costs.json").read_text())
    if document["rehearsal"]:
        raise SystemExit("rehearsed, which is no result")
    results_page.write(NAME, document, render(document))
    print(f"{NAME}: written")


if __name__ == "__main__":
    main()
