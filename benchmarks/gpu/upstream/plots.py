"""Plots of these runs, beside the results that docs/RESULTS.md links to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from benchmarks import results_page

from . import summary

#: Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def _figure(columns: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(5.2 * columns, 3.6), squeeze=False, layout="constrained")
    for ax in axes[0]:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _legend(ax: Any) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8)


def _save(figure: Any, name: str, text: str) -> str:
    results_page.RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(results_page.RESULTS / f"{name}.png", dpi=90)
    return f"![{text}](results/{name}.png)"


def acceptance(document: Mapping[str, Any], name: str) -> str:
    """Served and predicted acceptance, and reward, over the steps of each variant."""
    figure, (left, right) = _figure(2)
    for colour, variant in zip(COLOURS, document["variants"].values()):
        steps = variant["steps"]
        for metric, style in (("rollout/spec_accept_rate", "-"), (summary.PREDICTED[0], ":")):
            points = [(x, 100 * y) for x, y in zip(steps["step"], steps.get(metric, ())) if y is not None]
            if points:
                label = variant["title"] if style == "-" else None
                left.plot(*zip(*points), style, color=colour, label=label)
        reward = [(x, y) for x, y in zip(steps["step"], steps.get("critic/rewards/mean", ())) if y is not None]
        if reward:
            right.plot(*zip(*reward), color=colour, label=variant["title"])
    left.set(xlabel="step", ylabel="accepted drafts, %", title="served (line), predicted (dotted)")
    right.set(xlabel="step", ylabel="reward, mean", title="reward")
    _legend(left)
    return _save(figure, name, "Acceptance served and predicted, and reward, over training")


def memory(document: Mapping[str, Any], name: str) -> str:
    """Rollout tokens/s, and the memory of the rollout's GPU over time."""
    variants = {key: variant for key, variant in document["variants"].items() if "@" not in key}
    figure, (left, right) = _figure(2)
    titles = [variant["title"].replace(", ", ",\n") for variant in variants.values()]
    speeds = [variant["decode"].get("busy_tokens_per_s", 0.0) for variant in variants.values()]
    bars = left.bar(titles, speeds, color=COLOURS[: len(titles)])
    left.bar_label(bars, fmt="{:,.0f}")
    left.set(ylabel="tokens/s, one server", title="rollout while busy")
    for colour, variant in zip(COLOURS, variants.values()):
        samples = list(variant["memory_mib"].values())
        if samples:
            right.plot(*zip(*((t, used / 1024) for t, used in samples[-1])), color=colour, label=variant["title"])
    right.set(xlabel="seconds since the start", ylabel="GiB", title="memory of the last GPU")
    _legend(right)
    return _save(figure, name, "Rollout speed, and GPU memory over the run")
