"""The section of docs/RESULTS.md from rollout_speed.json.

python -m benchmarks.gpu.rollout_speed.report DIR
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks import results_page

NAME: Final = "gpu_rollout_speed"
Document = dict[str, Any]


def speed(rounds: list[Document]) -> float:
    return statistics.median(one["tokens_per_s"] for one in rounds)


def render(document: Document) -> str:
    rates = {rate: found["batches"] for rate, found in document["rates"].items() if "batches" in found}
    base, *others = rates
    versions = document["versions"]
    gpu = document["hardware"]["gpus"][0].split(",")[0]
    head = [f"{int(100 * float(rate))}% accepted" for rate in others]
    lines = [f"| requests at a time | without drafts | {' | '.join(head)} |", "|---" * (2 + len(others)) + "|"]
    for size, rounds in rates[base].items():
        plain = speed(rounds)
        cells = [f"{speed(rates[rate][size]):,.0f} ({speed(rates[rate][size]) / plain - 1:+.0%})" for rate in others]
        lines.append(f"| {size} | {plain:,.0f} | {' | '.join(cells)} |")
    first, *_, last = others
    gains = (f"{speed(rates[last][size]) / speed(rates[first][size]) - 1:+.0%} at {size}" for size in rates[base])
    parts = [
        "## What an accepted draft is worth",
        f"SGLang {versions['sglang']}, torch {versions['torch']}, FlashInfer {versions['flashinfer-python']}, alone "
        f"on one {gpu}, a model of MiMo-7B's sizes with dummy weights, "
        f"bf16, {document['drafts']} drafts a verify step, {document['prompt_tokens']} + {document['new_tokens']} "
        "tokens a request, temperature 1; acceptance is prescribed by SGLang's own `SGLANG_SIMULATE_ACC_LEN`. "
        f"Tokens/s, median of {len(next(iter(rates[base].values())))} rounds, and the gain over no drafts at all:",
        "\n".join(lines),
        f"From {head[0].split()[0]} to {head[-1].split()[0]}: {', '.join(gains)} requests at a time. Speculation pays "
        "for small batches; at the largest it costs more than it saves.",
        *document.get("notes", ()),
        "`python -m benchmarks.gpu.rollout_speed --out DIR`; `results/gpu_rollout_speed.json`.",
    ]
    return "\n\n".join(parts)


def write(folder: Path) -> None:
    document: Document = json.loads((folder / "rollout_speed.json").read_text())
    results_page.write(NAME, document, render(document))
    print("rollout_speed: written")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
