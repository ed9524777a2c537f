"""Sections of docs/RESULTS.md, each with the summary that is kept beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from . import acceptance as acceptance_script
from . import fully_async as fully_async_script
from . import hybrid as hybrid_script
from . import isolation as isolation_script
from . import plots, recipe, summary
from .cells import ASYNCHRONOUS, HYBRID, Row, both_ends, number, steps, table

Document = Mapping[str, Any]
BANNER: Final = re.compile(r"verl-mtp-plugin \S+ \(\w+\) applied: ([^;]+)")


def heading(document: Document, title: str, kind: ModuleType, sizes: recipe.Sizes) -> list[str]:
    """Title, what ran, on what, and how to run it again: ``sizes`` are what ``kind`` runs with if nothing is said."""
    variants = {name: variant for name, variant in document["variants"].items() if "@" not in name}
    gpus, one = document["hardware"]["gpus"], next(iter(variants.values()))
    stack = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    name = gpus[0].split(",")[0] if gpus else "GPU"
    return [
        f"## {title}",
        "",
        f"Upstream's `{document['script']}` (sha256 {one['script_sha256'][:12]}...), with environment variables before "
        "it and overrides behind it.",
        "",
        f"{one['gpus']} {name} a variant, of {len(gpus)} in the machine; {stack}.",
        "",
        f"`{again(variants, kind, sizes)}`",
        "",
        *(line for note in document.get("notes", ()) for line in (note, "")),
    ]


def again(variants: Mapping[str, Any], kind: ModuleType, sizes: recipe.Sizes) -> str:
    """The command that runs these variants again."""
    one = next(iter(variants.values()))
    gpus = ",".join(map(str, range(one["gpus"])))
    parts = [f"python -m {kind.__name__} --model MODEL --data DATA --examples VERL --gpus {gpus}"]
    parts += [f"--gpus-each {one['gpus']}"] if one["gpus"] > 2 else []
    parts += [f"--variants {','.join(variants)}"] if len(variants) < len(kind.VARIANTS) else []
    known = vars(sizes)
    parts += [f"--{name.replace('_', '-')} {value}" for name, value in one["sizes"].items() if value != known.get(name)]
    parts += ["--shared"] if one.get("shared_gpus") else []
    return " ".join(parts)


def _found(document: Document, plain: bool = True) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    variants = {name: v for name, v in document["variants"].items() if ("@" not in name) is plain}
    titles = {name: f"{v['title']}{f' ({name})' if not plain else ''}" for name, v in variants.items()}
    return {name: summary.of(variant) for name, variant in variants.items()}, titles


def hybrid(document: Document) -> tuple[str, dict[str, Any]]:
    """One GPU: with the plugin, without it, without MTP."""
    found, titles = _found(document)
    lines = heading(document, "Hybrid: trainer and rollout on one GPU", hybrid_script, recipe.Sizes())
    lines += [*table(HYBRID, found, titles), "", *sizes(document), *said(document)]
    return "\n".join(lines), {"variants": found}


def fully_async(document: Document) -> tuple[str, dict[str, Any]]:
    """Two or four GPUs: without MTP, with it as released, with it and the plugin."""
    found, titles = _found(document)
    gpus = max((variant["gpus"] for variant in document["variants"].values()), default=2)
    half = gpus // 2
    title = f"Fully asynchronous: {half} + {half} GPUs"
    lines = heading(document, title, fully_async_script, fully_async_script.Sizes())
    lines += [*table(ASYNCHRONOUS, found, titles), ""]
    base = found.get("no_mtp", {}).get("busy_tokens_per_s")
    gains = [
        f"{titles[name]}: {one['busy_tokens_per_s'] / base - 1:+.0%}"
        for name, one in found.items()
        if base and name != "no_mtp" and one["busy_tokens_per_s"]
    ]
    if gains:
        cut = f", whose run was cut off after {found['no_mtp']['steps']} steps" if found["no_mtp"]["cut_off"] else ""
        lines += [f"Rollout tokens/s while busy against the same model without MTP{cut}: {'; '.join(gains)}.", ""]
    lines += [*highest_memory(document), *sizes(document), *said(document)]
    if any(one["busy_tokens_per_s"] for one in found.values()):
        lines += [plots.memory(document, f"gpu_{document['kind']}"), ""]
    return "\n".join(lines), {"variants": found, "memory_tried": _found(document, plain=False)[0]}


def highest_memory(document: Document) -> list[str]:
    """What ``--find-memory`` found."""
    tried: dict[str, list[tuple[float, bool]]] = {}
    for name, variant in document["variants"].items():
        kind, _, value = name.partition("@")
        if value:
            tried.setdefault(kind, []).append((float(value), variant["status"] == 0))
    lines = []
    for kind, values in tried.items():
        passed = [value for value, good in values if good]
        failed = [value for value, good in values if not good]
        end = f"fails at {min(failed):g}" if failed else "none tried failed"
        best = f"{max(passed):g}" if passed else "none"
        lines.append(f"Highest gpu_memory_utilization that passes, {kind}: {best} ({end}).")
    return [*lines, ""] if lines else []


def acceptance(document: Document) -> tuple[str, dict[str, Any]]:
    """Four ways to treat the MTP layer."""
    found, titles = _found(document)
    rows: tuple[Row, ...] = (
        ("steps", steps),
        ("served, first -> last", both_ends("served_ends", "{:.1%}")),
        ("predicted, first -> last", both_ends("predicted_ends", "{:.1%}")),
        ("served less predicted, mean", number("difference", "{:+.2f} points", 100)),
        ("the largest, of any step", number("largest_difference", "{:.2f} points", 100)),
        ("MTP loss, first -> last", both_ends("mtp_loss")),
        ("reward, first -> last", both_ends("reward")),
        ("policy's gradient norm", number("grad_norm")),
        ("time per step, s", number("step_s")),
    )
    for name, one in found.items():
        variant = document["variants"][name]
        apart = summary.difference(variant)
        one["served_ends"] = summary.ends(variant, "rollout/spec_accept_rate", over=5)
        one["predicted_ends"] = summary.ends(variant, *summary.PREDICTED, over=5)
        one["difference"] = sum(apart) / len(apart) if apart else None
        one["largest_difference"] = max(map(abs, apart), default=None)
    lines = heading(document, "Acceptance over training", acceptance_script, acceptance_script.Sizes())
    lines += [
        "One draft a verify step, one update a step. *Served*: drafts that SGLang accepted. *Predicted*: how often the "
        "MTP layer's first choice is the token that the policy sampled, seen by the trainer on the same tokens.",
        "",
        *table(rows, found, titles),
        "",
        plots.acceptance(document, "gpu_acceptance"),
        "",
        *sizes(document),
    ]
    return "\n".join(lines), {"variants": found}


def isolation(document: Document) -> tuple[str, dict[str, Any]]:
    """The policy's numbers on the same rollouts, against those of the run with a frozen MTP layer."""
    found, titles = _found(document)
    frozen = document["variants"].get("frozen")
    for name, one in found.items():
        for metric in summary.POLICY if frozen else ():
            one[metric] = summary.apart(document["variants"][name], frozen, metric)
    rows: tuple[Row, ...] = (
        ("steps", steps),
        *((f"`{metric}`, largest difference", number(metric, "{:.1e}")) for metric in summary.POLICY),
        ("MTP loss, first -> last", both_ends("mtp_loss")),
    )
    title = "The policy beside the MTP layer's training"
    lines = heading(document, title, isolation_script, isolation_script.Sizes())
    lines += [
        "All variants train on the rollouts of the first. Differences from the run with a frozen MTP layer, in parts "
        "of the largest value of that run.",
        "",
        *table(rows, found, titles),
        "",
        *sizes(document),
    ]
    return "\n".join(lines), {"variants": found}


def sizes(document: Document) -> list[str]:
    """The sizes of the first variant, which are those of all."""
    chosen = next(iter(document["variants"].values()))["sizes"]
    return ["Sizes: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in chosen.items()) + ".", ""]


def said(document: Document) -> list[str]:
    """What the plugin said, and what its banners name as applied in one process or another."""
    lines = document["variants"].get("plugin", {}).get("plugin_said", {})
    kept = [line for line in lines if line.startswith("verl-mtp-plugin:")]
    banners = [(match[1].split(", "), count) for line, count in lines.items() if (match := BANNER.match(line))]
    applied = dict.fromkeys(name for names, _ in banners for name in names)
    told = [f"- `{line}`" for line in kept]
    told += [f"- in {sum(count for _, count in banners)} banners, as applied: {', '.join(applied)}"] if banners else []
    return ["What the plugin said:", "", *told, ""] if told else []
