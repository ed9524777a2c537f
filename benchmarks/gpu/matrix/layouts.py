"""The layouts of one and two GPUs, and the processes that run them. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.contract import stacks
from tests.contract.parallel.layouts import SEQUENCE_PARALLEL, Layout

RELEASES: Final = stacks.MEGATRON_CORE[stacks.MEGATRON_CORE.index("0.16.1") :]
VERL: Final = stacks.VERL[-1]
LAYOUTS: Final = (
    Layout("single", "one GPU", packed=True, processes=1),
    Layout("tensor", "tensor parallel", tensor=2, packed=True),
    Layout("sequence", "tensor and sequence parallel", tensor=2, packed=True, model=SEQUENCE_PARALLEL),
    Layout("context", "context parallel", context=2, packed=True),
)
BY_NAME: Final = {layout.name: layout for layout in LAYOUTS}


@dataclass(frozen=True)
class Job:
    """The layouts that one start of processes goes through.

    Args:
        plugin: ``on``, or ``off`` for verl as released.
        layouts: names.
        gpus: which are its own, by number; one process on each.
    """

    plugin: str
    layouts: tuple[str, ...]
    gpus: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{len(self.gpus)}gpu_{self.plugin}"


def jobs(gpus: int) -> list[Job]:
    """All jobs of a release on so many GPUs: one or two."""
    alone = [Job(mode, ("single",), (number % gpus,)) for number, mode in enumerate(("on", "off"))]
    together = [Job(mode, ("tensor", "sequence", "context"), (0, 1)) for mode in ("on", "off")]
    return alone + (together if gpus > 1 else [])
