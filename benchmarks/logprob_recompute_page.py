"""Tables and targets of benchmarks/logprob_recompute.py."""

from __future__ import annotations

from typing import Any, Final

import results_page

PLAIN: Final = "model without MTP"
OFF: Final = "model without MTP, plugin off"
TARGET: Final = 1.01
#: What is compared with the first of each: recompute, step. Where True it must reach the target.
RECOMPUTE: Final = {"labels=None": True, "labels given": True, "labels given, verl's patch": False}
STEP: Final = {
    "model without MTP": True, "MTP built, not trained": True, "MTP built, not trained, plugin off": False,
}  # fmt: skip


def misses(document: dict[str, Any]) -> list[str]:
    """Which targets are not met: ratios, and MTP calls in recompute."""
    result = []
    for release, found in document["releases"].items():
        for part, wanted in (("recompute", RECOMPUTE), ("step", STEP)):
            for name in (name for name, counts in wanted.items() if counts):
                ratio = found.get(f"{part}_ratios", {}).get(name, {}).get("ratio")
                if ratio is None or ratio > TARGET:
                    result.append(f"{release}, {part}, {name}: {ratio}")
                if part == "recompute" and found.get("mtp_calls", {}).get(name) != 0:
                    result.append(f"{release}, {part}, {name}: MTP calls")
    return result


def row(release: str, found: dict[str, Any], part: str, name: str) -> str:
    time_ms = found.get(part, {}).get(name, {})
    ratio = found.get(f"{part}_ratios", {}).get(name, {})
    if "ratio" not in ratio:
        text = str(time_ms.get("error", "-")).replace("|", "/")
        return f"| {release} | {name} | | {text if len(text) < 90 else text[:87] + '...'} | |"
    calls = found.get("mtp_calls", {}).get(name, "") if part == "recompute" else ""
    low, high = ratio["quartiles"]
    return f"| {release} | {name} | {time_ms['ms']:.2f} | {ratio['ratio']:.4f} ({low:.4f} to {high:.4f}) | {calls} |"


def write(document: dict[str, Any]) -> None:
    """docs/results/logprob_recompute.json and the section in docs/RESULTS.md."""
    head = "| megatron-core | | ms | against it: median (quartiles) | MTP calls |\n|---|---|---:|---:|---:|"
    parts = {}
    for part, wanted, base in (("recompute", RECOMPUTE, PLAIN), ("step", STEP, OFF)):
        lines = [head]
        for release, found in document["releases"].items():
            lines.append(f"| {release} | {base} | {found.get(part, {}).get(base, {}).get('ms', '-')} | 1 | |")
            lines += [row(release, found, part, name) for name in wanted]
        parts[part] = "\n".join(lines)
    versions = next(iter(document["releases"].values()))["versions"]
    section = f"""
## Cost of MTP where it is not trained

Recompute of log-probs, forward under `no_grad`, of a model with one MTP depth on which training was asked for, against the same model without MTP. verl's engine gives labels there too; with its own patch the MTP layers run and are thrown away.

{parts["recompute"]}

A training step (forward, log-probs, backward) with `enable_train=False`, against the model without MTP with the plugin off:

{parts["step"]}

GPTModel, {document["layers"]} layers, hidden size {document["hidden"]:,}, vocabulary {document["vocabulary"]:,}, {document["tokens"]:,} tokens. Ratios of samples taken in turns. Target: at most {TARGET}{"; all met" if not misses(document) else "; missed: " + "; ".join(misses(document))}. {document["device"]}, Python {versions["python"]}, torch {versions["torch"]}, patch of verl {document["verl"]}. `python benchmarks/logprob_recompute.py`.
"""  # noqa: E501
    results_page.write("logprob_recompute", document, section)
