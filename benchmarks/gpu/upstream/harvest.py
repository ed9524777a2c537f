"""Reads what a run left: verl's metrics, SGLang's decode lines, the plugin's lines, when what was reached."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Final

#: Metrics that are kept, by a part of their name.
KEPT: Final = (
    "mtp", "rollout/spec", "rollout_probs_diff", "rollout_actor_probs", "weight_sync/", "timing_s/", "perf/",
    "fully_async/", "critic/score/mean", "critic/rewards/mean", "response_length/mean", "response_length/clip",
    "actor/grad_norm", "actor/pg_loss", "actor/ppo_kl", "actor/entropy", "actor/lr", "training/global_step",
    "rollout_resource_utilization",
)  # fmt: skip
#: Lines that Ray forwards begin with "(name pid=1) "; every line of a log begins with its time.
_PREFIX: Final = re.compile(r"^\s*(?P<time>[\d.]+) (?:\x1b\[\d+m)?(?P<source>\([^)]*pid=\d+[^)]*\))?(?:\x1b\[0m)? ?")
_DECODE: Final = re.compile(
    r"Decode batch.*?#running-req: (?P<running>\d+).*?(?:accept len: (?P<length>[\d.]+), )?"
    r"(?:accept rate: (?P<rate>[\d.]+), )?[^,]*graph: (?P<graph>\w+), "
    r"gen throughput \(token/s\): (?P<throughput>[\d.]+)"
)
_PLUGIN: Final = re.compile(r"(?<![\w/-])verl-mtp-plugin(:| \d+\.\d+).*")
#: What start-up consists of, by the first line that shows it.
MILESTONES: Final = {
    "ray": re.compile(r"Started a local Ray instance|ray init kwargs"),
    "trainer_built": re.compile(r"actor and ref model engine initialized|FullyAsyncTrainer created and initialized"),
    "server_loading": re.compile(r"Load weight begin|Init torch distributed begin"),
    "graphs": re.compile(r"Capture cuda graph begin|Capture .*graph.* begin"),
    "server_ready": re.compile(r"Uvicorn running|HTTP server started|fired up and ready"),
    "first_decode": re.compile(r"Decode batch"),
    "first_step": re.compile(r"(^|\s)step:\d+ - "),
}


def lines(log: Path) -> Iterator[tuple[float, str, str]]:
    """Each line as (seconds since the start, who wrote it, text)."""
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            match = _PREFIX.match(line)
            if match:
                yield float(match["time"]), match["source"] or "", line[match.end() :].rstrip("\n")


def steps(metrics: Path) -> dict[str, list[float | None]]:
    """Columns of verl's file logger, one entry a step: the kept metrics; a step's lines are merged."""
    found: dict[int, dict[str, float]] = {}
    for line in metrics.read_text().splitlines() if metrics.is_file() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut off by the time limit
            continue
        values = found.setdefault(int(entry["step"]), {})
        for name, value in entry["data"].items():
            if isinstance(value, (int, float)) and any(part in name for part in KEPT):
                values[name] = float(f"{value:.6g}")
    names = sorted({name for values in found.values() for name in values})
    columns: dict[str, list[float | None]] = {"step": [float(step) for step in sorted(found)]} if found else {}
    return columns | {name: [found[step].get(name) for step in sorted(found)] for name in names}


def decode_lines(log: Path) -> list[dict[str, float]]:
    """SGLang's own account, every few decode steps: time, running requests, tokens/s, accepted length and rate."""
    found = []
    for seconds, source, text in lines(log):
        match = _DECODE.search(text)
        if match:
            line = {"t": seconds, "running": float(match["running"]), "tokens_per_s": float(match["throughput"])}
            line |= {key: float(match[key]) for key in ("length", "rate") if match[key]}
            line["graph"] = float(match["graph"] == "True")
            line["source"] = float(_pid(source))
            found.append(line)
    return found


def _pid(source: str) -> int:
    match = re.search(r"pid=(\d+)", source)
    return int(match[1]) if match else 0


def decode_summary(found: Iterable[Mapping[str, float]], after_s: float = 0.0) -> dict[str, float]:
    """Over the lines later than ``after_s``. Tokens between two lines are running requests times accepted length.

    ``tokens_per_s`` is all tokens over all time in which requests were running, of one server; ``busy_tokens_per_s``
    is the median over lines with at least three quarters of the most requests seen.
    """
    chosen = [line for line in found if line["t"] > after_s and line["tokens_per_s"] > 0 and line["running"] > 0]
    if not chosen:
        return {}
    tokens = [line["running"] * line.get("length", 1.0) for line in chosen]
    time = sum(amount / line["tokens_per_s"] for amount, line in zip(tokens, chosen))
    most = max(line["running"] for line in chosen)
    busy = [line["tokens_per_s"] for line in chosen if line["running"] >= 0.75 * most]
    result = {
        "lines": len(chosen),
        "most_running": most,
        "mean_running": _rounded(sum(line["running"] for line in chosen) / len(chosen)),
        "tokens_per_s": _rounded(sum(tokens) / time),
        "busy_tokens_per_s": _rounded(median(busy)),
        "in_cuda_graphs": _rounded(sum(line["graph"] for line in chosen) / len(chosen)),
    }
    if all("rate" in line for line in chosen):
        weights = [line["running"] for line in chosen]
        for key in ("rate", "length"):
            result[f"accept_{key}"] = _rounded(sum(w * x[key] for w, x in zip(weights, chosen)) / sum(weights))
    return result


def per_step(found: list[dict[str, float]], log: Path) -> list[dict[str, float]]:
    """The same for each step: the lines since the step before was logged, up to this one's."""
    ends = [(seconds, int(match[1])) for seconds, match in _step_lines(log)]
    result, begin = [], 0.0
    for end, step in ends:
        part = decode_summary([line for line in found if begin < line["t"] <= end])
        if part:
            result.append({"step": float(step), "logged_at_s": end, **part})
        begin = end
    return result


def _step_lines(log: Path) -> Iterator[tuple[float, re.Match[str]]]:
    for seconds, _, text in lines(log):
        match = re.search(r"(?:^|\s)step:(\d+) - ", text)
        if match:
            yield seconds, match


def milestones(log: Path) -> dict[str, float]:
    """When each part of start-up was first seen, in seconds."""
    found: dict[str, float] = {}
    for seconds, _, text in lines(log):
        for name, pattern in MILESTONES.items():
            if name not in found and pattern.search(text):
                found[name] = seconds
    return found


def plugin_lines(log: Path) -> dict[str, int]:
    """Everything the plugin said, and how many processes said it."""
    found: dict[str, int] = {}
    for _, _, text in lines(log):
        match = _PLUGIN.search(text)
        if match:
            found[match[0]] = found.get(match[0], 0) + 1
    return found


def errors(log: Path, most: int = 12) -> list[str]:
    """The last lines that look like an exception's."""
    pattern = re.compile(r"^(\w+\.)*\w*(Error|Exception|Exit)\b|Traceback|SIGQUIT|out of memory|Killed")
    found = [text.strip()[:400] for _, _, text in lines(log) if pattern.search(text.strip())]
    return found[-most:]


def thinned(samples: list[tuple[float, int]], most: int = 240) -> list[tuple[float, int]]:
    """About ``most`` samples, of which each keeps the largest and the smallest value of its span."""
    span = max(1, math.ceil(2 * len(samples) / most))
    kept = []
    for at in range(0, len(samples), span):
        part = samples[at : at + span]
        kept += sorted({min(part, key=lambda s: s[1]), max(part, key=lambda s: s[1])})
    return kept


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
