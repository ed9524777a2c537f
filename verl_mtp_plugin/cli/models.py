"""``verl-mtp models``: which model families' MTP the installed bridges can build and convert.

Asked in this process, with the plugin active, so that what it mends counts. Nothing of verl is imported.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum

from .. import activate, deactivate, report, runtime
from ..bridges.ask import ask
from ..environment import Environment, installed_version
from ..models.family import BRIDGES, ModelFamily

#: The distributions on which the answers depend.
STACK = (*BRIDGES, "megatron-core", "transformers")


class State(str, Enum):
    """One bridge's answer for one family."""

    YES = "yes"
    NO = "no"
    NOT_INSTALLED = "not installed"
    NOT_ASKED = "not asked"  # the family has no sample config
    NO_ANSWER = "no answer"  # the bridge cannot be imported, say


@dataclass(frozen=True, slots=True)
class Cell:
    """One bridge and one family."""

    state: State
    detail: str  # what was seen, or why not
    mends: tuple[str, ...] = ()  # this plugin's patch sets that the answer rests on


@dataclass(frozen=True, slots=True)
class Row:
    """One family."""

    family: str
    architectures: tuple[str, ...]
    bridges: dict[str, Cell]
    since: dict[str, str]  # the first release of a bridge known to support it


@dataclass(frozen=True, slots=True)
class Findings:
    """The whole table."""

    versions: dict[str, str | None]
    families: list[Row]

    @property
    def status(self) -> int:
        """Exit status: 0 if every family that was asked about got an answer, be it no; otherwise 1."""
        states = {cell.state for row in self.families for cell in row.bridges.values()}
        return 0 if states & {State.YES, State.NO} and State.NO_ANSWER not in states else 1

    def to_json(self) -> str:
        """The table as JSON, with the exit status."""
        return json.dumps({**asdict(self), "status": self.status}, indent=2)


def examine() -> Findings:
    """Ask every installed bridge about every registered family."""
    with contextlib.redirect_stdout(sys.stderr), _active():  # imported packages print as they please
        families = [_row(family) for family in runtime.models()]
    return Findings(Environment(distributions=STACK).versions, families)


@contextlib.contextmanager
def _active() -> Iterator[None]:
    """The plugin's patches armed, as ``import verl`` arms them, and taken back if they were not before."""
    before = report().active
    activate()
    try:
        yield
    finally:
        if not before:
            deactivate()


def _row(family: ModelFamily) -> Row:
    cells = {bridge: _cell(family, bridge) for bridge in BRIDGES}
    return Row(family.name, family.architectures, cells, dict(family.since))


def _cell(family: ModelFamily, bridge: str) -> Cell:
    answer = ask(family, bridge)
    if answer.supported is not None:
        return Cell(State.YES if answer.supported else State.NO, answer.detail, answer.mends)
    if installed_version(bridge) is None:
        return Cell(State.NOT_INSTALLED, "")
    return Cell(State.NOT_ASKED if family.sample is None else State.NO_ANSWER, answer.detail)
