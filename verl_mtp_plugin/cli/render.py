"""The doctor's findings for a person."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..patching.patch import Decision
from ..settings import MODE_VARIABLE
from .doctor import Findings

#: Columns where no terminal says how many there are.
_PIPED_WIDTH = 200
_STYLES = {
    "applied": "green",
    "not_needed": "green",
    "armed": "yellow",
    "lost": "yellow",
    "skipped": "dim",
    "reverted": "dim",
}


def render(findings: Findings, console: Console | None = None) -> None:
    """Print the findings for a person."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    versions = Table(title="Installed", title_justify="left")
    for heading in ("distribution", "version", ""):
        versions.add_column(heading, overflow="fold")
    for item in findings.installed:
        where = f"in {findings.checkouts[item.name]}" if item.name in findings.checkouts else ""
        versions.add_row(item.name, item.version or "-", ", ".join(filter(None, (item.label, where))))
    console.print(versions)
    patches = Table(title=f"Patches (mode {findings.report.get('mode', '?')}; {MODE_VARIABLE} changes it)")
    patches.title_justify = "left"
    patches.add_column("patch", no_wrap=True)  # to be found by grep
    for heading in ("decision", "why it exists", "upstream"):
        patches.add_column(heading, overflow="fold")
    for row in _grouped(findings.report.get("patches", [])):
        patches.add_row(*row)
    console.print(patches)
    if any(patch["decision"] == Decision.ARMED for patch in findings.report.get("patches", [])):
        console.print("armed: waits for its module; `verl-mtp doctor --probe` imports the stack and decides.")
    for note in findings.notes:
        console.print(f"[yellow]note[/] {escape(note)}", highlight=False)
    for problem in findings.problems:
        console.print(f"[red]problem[/] {escape(problem)}", highlight=False)
    if not findings.status:
        console.print("[green]No problem found.[/]")


def _grouped(patches: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """A row per patch set where its patches agree, else a row per patch."""
    rows: dict[tuple[str, str, str], tuple[str, str, str, str]] = {}
    for patch in patches:
        decision, style = patch["decision"], _STYLES.get(patch["decision"], "red")
        detail = "" if decision == Decision.ARMED else patch["detail"]  # said once below for all that wait
        shown = f"[{style}]{decision}[/]" + (f"\n{escape(detail)}" if detail else "")
        key = (patch["patch_set"], decision, patch["reason"])
        name = patch["id"] if key not in rows else patch["patch_set"]
        rows[key] = (name, shown, patch["reason"], patch["upstream"])
    return list(rows.values())
