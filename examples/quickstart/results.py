"""What the experiment leaves behind, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from engine import Step
from measure import Measurement
from sampler import Sampled


@dataclass(frozen=True)
class Plan:
    """How long, from which seed, and what counts as clearly better."""

    steps_main: int
    steps_mtp: int
    seed: int
    measure_every: int
    held_out: int
    margin: float  # in acceptance


@dataclass(frozen=True)
class Check:
    """Something that must hold, and what was found."""

    name: str
    passed: bool
    found: str


@dataclass
class Course:
    """One training run: every step, and the measurements in between."""

    steps: list[Step] = field(default_factory=list)
    measured: list[Measurement] = field(default_factory=list)
    example: Sampled | None = None

    @property
    def last(self) -> Measurement:
        return self.measured[-1]


@dataclass
class Results:
    """All that the report shows."""

    main: Course = field(default_factory=Course)
    trained: Course = field(default_factory=Course)
    control: Course = field(default_factory=Course)
    checks: list[Check] = field(default_factory=list)

    def check(self, name: str, passed: bool, found: str) -> None:
        self.checks.append(Check(name, bool(passed), found))


def as_rows(course: Course) -> Iterator[dict[str, Any]]:
    """The steps of a course, for JSON."""
    for step in course.steps:
        yield {"loss": step.loss, "mtp_loss": step.mtp_loss, "grad_norm": step.grad_norm}
