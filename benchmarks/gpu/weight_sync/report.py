"""The section of docs/RESULTS.md from benchmarks/gpu/results/weight_sync.json.

python -m benchmarks.gpu.weight_sync.report [FILE ...]   # files of several runs: a later one's phases win
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks import results_page

NAME: Final = "weight_sync"
RESULTS: Final = Path(__file__).resolve().parents[1] / "results"
#: What each phase shows; "plugin" and "released" are the two sessions.
SHOWN: Final = {
    "memory": "KV cache released and resumed, five times",
    "noop": "syncs of the same weights: 16 greedy answers of 128 tokens before and after",
    "repeat": "syncs in a row, new weights each",
    "out_of_memory": "transfer buffers that do not fit beside the KV pools",
    "transfer_fails": "the receiver breaks at the last tensor (and, with the plugin, before the first)",
    "abort": "12 long requests in flight, `sync_requests=abort`",
    "retract": "12 long requests in flight, `sync_requests=retract`, three syncs",
    "retract_logprobs": "the same with log-probs",
    "retract_burst": "96 requests of which 64 fit, `retract`, four syncs one after the other",
    "kept_cache": "`free_cache_engine=False`, 12 long requests in flight, ten syncs, in a run of its own on 2026-11-28 "
    "(`--phases kept_cache --bucket-mib 256 --utilization 0.4`); the race that ends SGLang's scheduler was not lost "
    "without the plugin either, while on a CPU a delayed step loses it each time",
}
STEPS: Final = ("pause_s", "drain_s", "kv_release_s", "transfer_s", "kv_resume_s", "seconds")
Document = dict[str, Any]


def merged(documents: list[Document]) -> Document:
    """Phases of all documents, the last one's where several have them."""
    first, *others = documents
    for other in others:
        for name, session in other["sessions"].items():
            old = first["sessions"].get(name, {}).get("phases", {})
            first["sessions"][name] = {**session, "phases": {**old, **session["phases"]}}
        first["begun"] = other["begun"]
    return first


def _phases(document: Document, session: str) -> Document:
    return dict(document["sessions"].get(session, {}).get("phases", {}))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return str(value).replace("|", "/").replace("\n", " ")[:120]


def _outcome(row: Document | None) -> str:
    if row is None:
        return ""
    return _text(row["found"]) if row["ok"] else f"**{_text(row['found'])}**"


def checks(document: Document) -> str:
    """Every check, both sessions side by side; bold: not what was wanted."""
    plugin, released = _phases(document, "plugin"), _phases(document, "released")
    lines = ["| phase | check | wanted | with the plugin | verl as released |", "|---|---|---|---|---|"]
    for name in SHOWN:
        ours, theirs = (phases.get(name, {"checks": {}, "error": ""}) for phases in (plugin, released))
        for check in dict.fromkeys((*ours["checks"], *theirs["checks"])):
            rows = [phase["checks"].get(check) for phase in (ours, theirs)]
            wanted = next(row for row in rows if row)["wanted"]
            cells = (name, check.replace("_", " "), _text(wanted), *map(_outcome, rows))
            lines.append(f"| {' | '.join(cells)} |")
        if ours["error"] or theirs["error"]:
            errors = (f"**{_text(phase['error'])}**" if phase["error"] else "" for phase in (ours, theirs))
            lines.append(f"| {name} | | | {' | '.join(errors)} |")
    return "\n".join(lines)


def _leaks(document: Document) -> str:
    """MiB that each sync leaves behind, from the fifth on."""
    told = []
    for name, label in (("plugin", "with the plugin"), ("released", "with verl as released")):
        used = _phases(document, name).get("repeat", {}).get("values", {}).get("used_mib", [])
        if len(used) > 5:
            told.append(f"{(used[-1] - used[4]) / (len(used) - 5):.0f} MiB {label} ({len(used)} syncs)")
    return f"Each sync leaves behind, from the fifth on: {', '.join(told)}." if told else ""


def steps(document: Document) -> str:
    """Seconds of each step."""
    lines = ["| | median | max |", "|---|---:|---:|"]
    repeat = _phases(document, "plugin").get("repeat", {}).get("values", {})
    found = dict(repeat.get("steps", {}))
    found |= {name: repeat[name] for name in ("transfer_s_checked", "transfer_s_unchecked") if name in repeat}
    released = _phases(document, "released").get("repeat", {}).get("values", {}).get("steps", {}).get("seconds")
    if released:
        found["seconds, verl as released"] = released
    order = [name for name in STEPS if name in found] + [name for name in found if name not in STEPS]
    for name in order:
        lines.append(f"| `{name}` | {found[name]['median']:.4f} | {found[name]['max']:.4f} |")
    return "\n".join(lines)


def sentences(document: Document) -> list[str]:
    """Numbers that are no checks."""
    plugin, released = _phases(document, "plugin"), _phases(document, "released")
    told = [_leaks(document)] if _leaks(document) else []
    if memory := plugin.get("memory", {}).get("values"):
        told.append(
            f"Memory in use, whole GPU: {memory['used_mib']:,.0f} MiB, {memory['released_mib']:,.0f} MiB with the KV "
            f"cache released; pools {memory['kv_pools_with_drafter_mib']:,.0f} MiB (target "
            f"{memory['kv_pool_mib']:,.0f} MiB by SGLang, and the drafter's, which it does not report). Release "
            f"{memory['release_s']['median']:.3f} s, resume {memory['resume_s']['median']:.3f} s."
        )
    for label, phases in (("With", plugin), ("Without", released)):
        found = phases.get("noop", {}).get("values", {}).get("acceptance")
        if found:
            told.append(
                f"{label}: {found['tokens_per_step']:.2f} tokens per verify step; as verl reports it, accept length "
                f"{found['accept_length']:.2f} and rate {found['accept_rate']:.2f}."
            )
    rates = [plugin.get(f"throughput_{when}", {}).get("values", {}).get("tokens_per_s") for when in ("before", "after")]
    if all(rates):
        before, after = (rate["median"] for rate in rates)
        told.append(f"Generation: {before:,.0f} tokens/s before the syncs in a row, {after:,.0f} after.")
    if room := released.get("out_of_memory", {}).get("values"):
        told.append(
            f"At utilization {room['utilization']} there are {room['free_mib']:,.0f} MiB free and the transfer holds "
            f"{room['buffers_mib']:,} MiB."
        )
    for name in ("retract", "retract_logprobs"):
        if values := plugin.get(name, {}).get("values"):
            told.append(
                f"{name}: {values['tokens']:,} tokens a request; of two undisturbed runs "
                f"{values['undisturbed_identical']} of 12 answers are identical."
            )
            if "logprob_distance" in values:
                told.append(
                    f"Largest difference of a log-prob: {values['logprob_distance']:.3g}, undisturbed "
                    f"{values['logprob_distance_undisturbed']:.3g}, with other "
                    f"words before the last 16 tokens of the prompt {values['logprob_distance_other_context']:.3g}."
                )
    return told


def section(document: Document) -> str:
    facts = next(iter(document["sessions"].values()))
    versions, model = facts["versions"], facts["model"]
    shown = "\n".join(f"- `{name}`: {text}." for name, text in SHOWN.items())
    return f"""
## Weight syncs on a GPU

verl's `CheckpointEngineManager` and standalone `SGLangReplica` on {facts["gpu"]}: verl {versions["verl"]}, SGLang {versions["sglang"]}, torch {versions["torch"]}, Ray {versions["ray"]}, Python {facts["python"]}, attention {facts["attention"]}; MiMo with {model["layers"]} layers, {model["drafters"]} MTP layer and {model["weights_gib"]:.2f} GiB of weights, EAGLE with 2 steps, CUDA graphs, memory saver; utilization {facts["utilization"]}, two transfer buffers of {facts["bucket_mib"]} MiB. Only the transport is not verl's: weights go through a file, so `transfer_s` says nothing of NCCL. {document["begun"]}; `python -m benchmarks.gpu.chain_model FOLDER && python -m benchmarks.gpu.weight_sync --model FOLDER` on the stack of [benchmarks/gpu/stack](../benchmarks/gpu/stack).

{shown}

{checks(document)}

Seconds of each step of the syncs in a row:

{steps(document)}

{chr(10).join(f"- {sentence}" for sentence in sentences(document))}
"""  # noqa: E501


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]] or [RESULTS / f"{NAME}.json"]
    document = merged([json.loads(path.read_text()) for path in files])
    if document["rehearsal"]:
        print(section(document))
        raise SystemExit("a rehearsal: nothing is written")
    results_page.RESULTS = RESULTS
    results_page.write(NAME, document, section(document))


if __name__ == "__main__":
    main()
