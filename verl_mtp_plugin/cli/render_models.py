"""The table of model families for a person."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..models.family import BRIDGES
from .models import Cell, Findings, State

_STYLES = {State.YES: "green", State.NO: "red", State.NO_ANSWER: "yellow"}


def render(findings: Findings, console: Console | None = None) -> None:
    """Print the table for a person."""
    console = console or Console()
    console.print(", ".join(f"{name} {version or '(not installed)'}" for name, version in findings.versions.items()))
    table = Table(title="Whose MTP the installed bridges can build and convert", title_justify="left")
    for heading in ("family", "architectures", *BRIDGES, "known since"):
        table.add_column(heading, overflow="fold")
    for row in findings.families:
        since = "\n".join(f"{bridge} {version}" for bridge, version in row.since.items())
        cells = (_shown(row.bridges[bridge]) for bridge in BRIDGES)
        table.add_row(row.family, "\n".join(row.architectures), *cells, since)
    console.print(table)
    if findings.status:
        console.print("[yellow]Some families got no answer. Is this the Python of your training job?[/]")


def _shown(cell: Cell) -> str:
    state = f"[{_STYLES.get(cell.state, 'dim')}]{cell.state.value}[/]"
    if cell.mends:
        state += f", with {escape(', '.join(cell.mends))} of this plugin"
    return state if cell.state is State.YES or not cell.detail else f"{state}: {escape(cell.detail)}"
