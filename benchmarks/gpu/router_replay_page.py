"""The section of docs/RESULTS.md from the JSON of :mod:`.router_replay`.

python -m benchmarks.gpu.router_replay_page FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks import results_page

NAME: Final = "gpu_router_replay"
SAYS: Final = {"no_mtp": "without MTP", "plugin": "MTP, with the plugin", "released": "MTP, SGLang as released"}


def section(document: dict[str, Any]) -> str:
    versions, gpus = document["versions"], document["hardware"]["gpus"]
    lines = [
        "## Router replay beside a drafter",
        "A GLM-4.5 of four layers, 128 experts of which 8 are chosen, experts in the MTP layer too; EAGLE with 3 "
        "steps, CUDA graphs, 16 greedy answers one after the other. Share of tokens whose experts (`routed_experts`) "
        "in a layer are not those of the engine without MTP:",
        "| | layer 0 | 1 | 2 | 3 | identical answers | verify steps |\n|---|---:|---:|---:|---:|---:|---:|\n"
        + "\n".join(row(SAYS[name], found) for name, found in document["variants"].items()),
        f"{', '.join(gpus)}; SGLang {versions['sglang']}, verl {versions['verl']}, torch {versions['torch']}. "
        "`python -m benchmarks.gpu.router_replay --out DIR`. A first try, with 16 experts and with piecewise CUDA "
        "graphs of the prefill, ended in an illegal memory access in all three engines, without MTP too; it was not "
        "looked into, and these graphs are off here.",
    ]
    return "\n\n".join(lines)


def row(name: str, found: dict[str, Any]) -> str:
    if "error" in found:
        return f"| {name} | {found['error'].splitlines()[-1][:100]} | | | | | |"
    shares = " | ".join(f"{share:.1%}" for share in found["differ_by_layer"])
    return f"| {name} | {shares} | {found['identical_answers']} of 16 | {found['verify_steps'] or ''} |"


def main() -> None:
    document = json.loads(Path(sys.argv[1]).read_text())
    results_page.write(NAME, document, section(document))


if __name__ == "__main__":
    main()
