"""The picture: acceptance above, losses below, over optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from results import Plan, Results

#: Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREY: Final = "#7F7F7F"


def draw(file: Path, plan: Plan, results: Results, versions: Mapping[str, str | None]) -> None:
    """Write the PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9.5, 8), sharex=True, layout="constrained")
    courses = (
        ("main model only", results.main, GREY),
        ("control: MTP not trained", results.control, ORANGE),
        ("MTP trained", results.trained, BLUE),
    )
    for label, course, colour in courses:
        steps = [m.step for m in course.measured]
        sampled = [100 * m.acceptance["1"] for m in course.measured]
        likeliest = [100 * m.acceptance["0"] for m in course.measured]
        top.plot(steps, sampled, "-o", color=colour, markersize=4, label=label)
        top.plot(steps, likeliest, ":", color=colour, linewidth=2.5, alpha=0.6)
        bottom.plot(steps, [m.draft_loss for m in course.measured], "-o", color=colour, markersize=4)
        start = course.measured[0].step
        losses = [step.loss for step in course.steps]
        bottom.plot(range(start + 1, start + 1 + len(losses)), losses, "--", color=colour, linewidth=1)
    for axes in (top, bottom):
        axes.axvline(plan.steps_main, color="black", linewidth=0.8)
        axes.grid(axis="y", alpha=0.25)
    top.set(ylim=(0, 100), ylabel="drafts accepted (%)")
    bottom.set(xlabel="optimizer steps", ylabel="loss (nats per token)", xlim=(0, plan.steps_main + plan.steps_mtp))
    bottom.set_ylim(bottom=0)
    top.annotate(
        "MTP training starts", (plan.steps_main, 97), (-6, 0), textcoords="offset points", ha="right", va="top"
    )
    top.add_artist(top.legend(frameon=False, loc="center left"))
    for axes, solid, broken in (
        (top, "tokens sampled (T=1)", (":", "likeliest token (T=0)")),
        (bottom, "MTP layer, held-out problems", ("--", "main model, training batch")),
    ):
        handles = [_key(plt, "-o", solid), _key(plt, *broken)]
        axes.legend(handles=handles, loc="center right", handlelength=2.6, frameon=False)
    figure.suptitle("A tiny MiMo learns to draft in verl's Megatron engine", fontsize=14)
    top.set_title(
        f"verl {versions['verl']}, megatron-core {versions['megatron-core']}, mbridge {versions['mbridge']}, on a CPU; "
        "toy text: the mechanism, not a speed-up",
        fontsize=9.5,
        color="#555555",
    )
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _key(pyplot: Any, style: str, label: str) -> Any:
    """A legend entry for a line style."""
    return pyplot.plot([], [], style, color="black", markersize=4, label=label)[0]
