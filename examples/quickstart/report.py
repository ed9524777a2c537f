"""What the quickstart shows: two tables, an example, a picture, a JSON file."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import model
from results import Course, Plan, Results, as_rows
from rich.console import Console
from rich.table import Table
from rich.text import Text

PACKAGES: Final = ("verl-mtp-plugin", "verl", "megatron-core", "mbridge", "torch", "transformers")
DECISION_STYLES: Final = {"applied": "green", "not_needed": "dim", "armed": "dim", "skipped": "dim"}
HONEST: Final = (
    "A tiny model on toy text shows the mechanism: training the MTP layer is what makes its drafts right. "
    "It is no measurement of speed; on a CPU nothing here is faster for it."
)


def versions() -> dict[str, str | None]:
    """What this ran on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def show(console: Console, plan: Plan, results: Results, patches: Any, tokenizer_folder: Path) -> None:
    """Tables on the console."""
    console.print(_acceptance_table(plan, results))
    if console.color_system:
        console.print(_example(results.trained, tokenizer_folder))
    console.print(_check_table(results))
    console.print(_patch_table(patches))
    console.print(f"[italic]{HONEST}[/]")


def _acceptance_table(plan: Plan, results: Results) -> Table:
    table = Table(title="How often the MTP draft is the token then drawn", title_justify="left")
    table.add_column("after")
    for name in ("T=0", "T=1", "draft loss", "main loss", "solved"):
        table.add_column(name, justify="right")
    first = results.main.measured[0]
    rows = (
        ("random weights", first, "dim"),
        (f"baseline: {plan.steps_main} steps of the main model", results.main.last, ""),
        (f"control: {plan.steps_mtp} steps more, MTP not trained", results.control.last, ""),
        (f"{plan.steps_mtp} steps more, MTP trained", results.trained.last, "bold green"),
    )
    for name, measured, style in rows:
        table.add_row(
            name,
            *(f"{measured.acceptance[t]:.1%}" for t in ("0", "1")),
            f"{measured.draft_loss:.3f}",
            f"{measured.main_loss:.3f}",
            f"{measured.solved:.1%}",
            style=style,
        )
    table.caption = f"{plan.held_out} held-out problems; losses in nats per token"
    return table


def _example(course: Course, tokenizer_folder: Path) -> Text:
    """One sampled answer, with the tokens that the draft had right."""
    from transformers import AutoTokenizer

    text = Text("One answer, what was drafted right in green: ")
    if course.example is None:
        return text
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    row = course.example.ids[0].tolist()
    for token, right in zip(tokenizer.convert_ids_to_tokens(row), course.example.accepted[0].tolist()):
        text.append(token, style="bold green" if right else "red")
        if token == "<eos>":
            break
    return text


def _check_table(results: Results) -> Table:
    table = Table(title="Checks", title_justify="left")
    for name in ("", "what must hold", "found"):
        table.add_column(name)
    for check in results.checks:
        table.add_row("[green]ok[/]" if check.passed else "[bold red]FAILED[/]", check.name, check.found)
    return table


def _patch_table(patches: Any) -> Table:
    """One row for each symptom: patches of a set that share a decision and a reason stand together."""
    table = Table(title="What the plugin did in this process", title_justify="left")
    for name in ("patch", "decision", "target", "without it"):
        table.add_column(name, overflow="fold")
    for (name, decision, reason), group in groupby(patches.patches, lambda p: (p.patch_set, str(p.decision), p.reason)):
        found = list(group)
        style = DECISION_STYLES.get(decision, "bold red")
        target = f"{found[0].target}" + (f" and {len(found) - 1} more" if len(found) > 1 else "")
        table.add_row(name if len(found) > 1 else found[0].id, f"[{style}]{decision}[/]", target, reason)
    return table


def write_json(file: Path, plan: Plan, results: Results, patches: Any, seconds: float) -> None:
    """Every number."""
    courses = {"main": results.main, "trained": results.trained, "control": results.control}
    content = {
        "versions": versions(),
        "plan": asdict(plan),
        "model": model.CONFIG,
        "seconds": round(seconds, 1),
        "courses": {
            name: {"measured": [asdict(m) for m in course.measured], "steps": list(as_rows(course))}
            for name, course in courses.items()
        },
        "checks": [asdict(check) for check in results.checks],
        "passed": all(check.passed for check in results.checks),
        "patches": json.loads(patches.to_json()),
        "note": HONEST,
    }
    file.write_text(json.dumps(content, indent=1))
