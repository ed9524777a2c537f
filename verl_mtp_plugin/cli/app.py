"""``verl-mtp``: the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Multi-Token Prediction for verl.")


@app.callback()
def _root() -> None:
    """Multi-Token Prediction for verl."""


@app.command()
def version() -> None:
    """Print the plugin's version."""
    typer.echo(__version__)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Import verl and megatron-core (takes a while) and decide every patch.")
    ] = False,
) -> None:
    """Say what is installed, and what becomes of each patch.

    Exit status: 0 all is well, 1 something to know (missing, untested), 2 MTP would not work here.
    """
    from .doctor import examine, render

    findings = examine(probe=probe)
    if json:
        typer.echo(findings.to_json())
    else:
        render(findings)
    raise typer.Exit(findings.status)


def main() -> None:
    """Entry point of the console script."""
    app()
