"""``verl-mtp``: the command line.

argparse, and not one of the command-line libraries: those bring pydantic or click at versions of their own, and
installing this plugin must not move a package of the user's stack.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import MtpPluginError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="verl-mtp", description="Multi-Token Prediction for verl.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    doctor = commands.add_parser(
        "doctor",
        help="say what is installed, and what becomes of each patch",
        description="Say what is installed, and what becomes of each patch.",
        epilog="Exit status: 0 nothing speaks against MTP here, 1 something to know (missing, untested), "
        "2 MTP would not work here.",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument(
        "--probe", action="store_true", help="import verl and megatron-core (takes a while) and decide every patch"
    )
    doctor.set_defaults(run=_doctor)
    models = commands.add_parser(
        "models",
        help="say which models' MTP the installed bridges can build and convert",
        description="Ask the installed bridges (mbridge, Megatron-Bridge) which model families' MTP they can build and "
        "convert. Imports them, with the plugin active: what it mends counts.",
        epilog="Exit status: 0 every family that was asked about got an answer, be it no; 1 some did not, or no bridge "
        "is installed.",
    )
    models.add_argument("--json", action="store_true", help="print the table as JSON")
    models.set_defaults(run=_models)
    return parser


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import examine

    findings = examine(probe=options.probe)
    if options.json:
        print(findings.to_json())
    else:
        from .render import render

        render(findings)
    return findings.status


def _models(options: argparse.Namespace) -> int:
    from .models import examine

    try:
        findings = examine()
    except MtpPluginError as error:  # a misspelt switch
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(findings.to_json())
    else:
        from .render_models import render

        render(findings)
    return findings.status


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    options = _parser().parse_args(arguments)
    sys.exit(options.run(options))


if __name__ == "__main__":
    main()
