"""Rows of the tables, and a table: variants as columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

Row = tuple[str, Callable[[dict[str, Any]], str]]


def number(name: str, form: str = "{:.3g}", scale: float = 1.0) -> Callable[[dict[str, Any]], str]:
    """A cell with the number of that name; a dash where a run has none."""

    def cell(found: dict[str, Any]) -> str:
        value = found.get(name)
        return "-" if value is None else form.format(value * scale)

    return cell


def waited(name: str, longest: str) -> Callable[[dict[str, Any]], str]:
    """A cell with the median of a wait and, in brackets, the longest."""

    def cell(found: dict[str, Any]) -> str:
        values = (found.get(name), found.get(longest))
        return "-" if None in values else f"{values[0]:.3g} ({values[1]:.3g})"

    return cell


def _part(title: str, name: str) -> Row:
    return f"{title}, s: median (longest)", waited(f"weight_sync_{name}_s", f"weight_sync_{name}_s_max")


def both_ends(name: str, form: str = "{:.3f}") -> Callable[[dict[str, Any]], str]:
    """A cell with the values at the beginning and at the end."""

    def cell(found: dict[str, Any]) -> str:
        value = found.get(name)
        return "-" if value is None else " -> ".join(form.format(part) for part in value)

    return cell


def steps(found: dict[str, Any]) -> str:
    end = ", then cut off" if found["cut_off"] else "" if found["ended_well"] else ", then failed"
    return f"{found['steps']}{end}"


def _unchanged(found: dict[str, Any]) -> str:
    return "yes" if found["script_unchanged"] else "a refused line left out"


COMMON: Final[tuple[Row, ...]] = (
    ("script as it is", _unchanged),
    ("steps", steps),
    ("until the first step, s", number("first_step_s", "{:.0f}")),
    ("time per step, s", number("step_s")),
)
SPEED: Final[tuple[Row, ...]] = (
    ("rollout while busy, tokens/s (SGLang's log)", number("busy_tokens_per_s", "{:,.0f}")),
    ("rollout over all decoding, tokens/s", number("decode_tokens_per_s", "{:,.0f}")),
)
ACCEPTANCE: Final[tuple[Row, ...]] = (
    ("accepted drafts, SGLang's log", number("served_rate", "{:.1%}")),
    ("tokens per verify step, SGLang's log", number("served_length", "{:.2f}")),
    ("`rollout/spec_accept_rate`", number("reported_rate", "{:.1%}")),
    ("`rollout/spec_accept_length`", number("reported_length", "{:.2f}")),
    ("`mtp/top1_acceptance` (first draft)", number("predicted_rate", "{:.1%}")),
    ("MTP loss, first -> last", both_ends("mtp_loss")),
)
POLICY: Final[tuple[Row, ...]] = (
    ("log-probs, mean difference of probabilities", number("probs_diff", "{:.2g}")),
    ("log-probs, correlation", number("probs_correlation", "{:.5f}")),
    ("reward, first -> last", both_ends("reward")),
    ("policy's gradient norm", number("grad_norm")),
)
HYBRID: Final[tuple[Row, ...]] = (
    *COMMON,
    ("generation, s", number("gen_s")),
    ("log-prob recompute, s", number("old_log_prob_s")),
    ("update of the actor, s", number("update_actor_s")),
    ("weight sync, s: median (longest)", waited("sync_s", "sync_max_s")),
    *SPEED,
    *ACCEPTANCE,
    *POLICY,
    ("peak GPU memory, GiB", number("peak_mib", "{:.1f}", 1 / 1024)),
)
ASYNCHRONOUS: Final[tuple[Row, ...]] = (
    *COMMON,
    *SPEED,
    *ACCEPTANCE,
    ("weight sync, s: median (longest)", waited("sync_s", "sync_max_s")),
    _part("of it: pause", "pause"),
    _part("drain", "drain"),
    _part("KV cache released", "kv_release"),
    _part("transfer", "transfer"),
    _part("KV cache resumed", "kv_resume"),
    ("requests in flight at a sync, most", number("weight_sync_aborted_requests_max", "{:.0f}")),
    ("KV cache released, GiB", number("weight_sync_kv_freed_gib", "{:.1f}")),
    ("rollout idle", number("idle_ratio", "{:.0%}")),
    ("rollout's and trainer's log-probs, KL", number("ppo_kl", "{:.2g}")),
    ("reward, first -> last", both_ends("reward")),
    ("peak GPU memory, GiB", number("peak_mib", "{:.1f}", 1 / 1024)),
)


def table(rows: tuple[Row, ...], variants: Mapping[str, dict[str, Any]], titles: Mapping[str, str]) -> list[str]:
    """Variants as columns. Rows that no variant has are left out."""
    lines = ["| | " + " | ".join(titles[name] for name in variants) + " |", "|---" * (len(variants) + 1) + "|"]
    for title, cell in rows:
        cells = [cell(found) for found in variants.values()]
        if set(cells) != {"-"}:
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines
