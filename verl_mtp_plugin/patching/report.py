"""What was decided in this process, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Final

from .patch import Decision, Patch

#: The decision of a set is the first of these that one of its patches has.
_WEIGHT: Final = (
    Decision.FAILED,
    Decision.CONFLICT,
    Decision.UNSUPPORTED,
    Decision.LOST,
    Decision.APPLIED,
    Decision.ARMED,
    Decision.NOT_NEEDED,
    Decision.SKIPPED,
    Decision.REVERTED,
)
#: How they are counted in a line; all others are named.
_COUNTED: Final = {
    Decision.APPLIED: "applied",
    Decision.NOT_NEEDED: "not needed",
    Decision.ARMED: "for modules that this process has not imported",
    Decision.SKIPPED: "turned off",
    Decision.REVERTED: "taken back",
}
#: Decisions that have changed nothing and break nothing.
_QUIET: Final = frozenset({Decision.ARMED, Decision.NOT_NEEDED, Decision.SKIPPED})


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """One patch: what it is for, and what became of it."""

    id: str
    patch_set: str
    decision: Decision
    detail: str  # why this decision
    reason: str  # the symptom without the patch
    target: str
    upstream: str
    critical: bool
    package: str = ""  # who brought it, if not this package itself

    @classmethod
    def of(cls, patch: Patch, patch_set: str, decision: Decision, detail: str, package: str = "") -> PatchRecord:
        return cls(
            patch.id,
            patch_set,
            decision,
            detail,
            patch.reason,
            str(patch.target),
            patch.upstream,
            patch.critical,
            package,
        )

    @property
    def name(self) -> str:
        """The id, and who brought it."""
        return f"{self.id} of {self.package}" if self.package else self.id


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """A package that gave us patches or models, or failed to."""

    name: str
    source: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class PatchReport:
    """The state of one process."""

    version: str
    mode: str
    active: bool
    versions: dict[str, str | None] = field(default_factory=dict)
    patches: tuple[PatchRecord, ...] = ()
    plugins: tuple[PluginRecord, ...] = ()
    options: dict[str, str] = field(default_factory=dict)  # those that differ from their default

    def to_json(self, *, indent: int | None = None) -> str:
        """The whole report as JSON."""
        return json.dumps(asdict(self), indent=indent, default=str)

    def with_decision(self, decisions: Iterable[Decision]) -> tuple[PatchRecord, ...]:
        """The patches with one of ``decisions``."""
        wanted = frozenset(decisions)
        return tuple(record for record in self.patches if record.decision in wanted)

    def digest(self) -> str:
        """Twelve hex digits that are equal in processes with the same versions and the same decisions.

        A patch that still waits says nothing about the node, since which modules have been imported depends on a
        process's role; so ARMED patches are left out.
        """
        state = {
            "plugin": self.version,
            "mode": self.mode,
            "options": self.options,
            "versions": self.versions,
            "decisions": sorted((r.id, r.decision.value) for r in self.patches if r.decision is not Decision.ARMED),
        }
        return sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]

    def banner(self) -> str:
        """One line for a log: the patch sets by decision; those that have changed nothing are counted, not named."""
        groups: dict[Decision, list[str]] = {}
        for record in self.patches:
            names = groups.setdefault(record.decision, [])
            if record.patch_set not in names:
                names.append(record.patch_set)
        decisions = "; ".join(
            f"{str(decision).replace('_', ' ')}: {len(names) if decision in _QUIET else ', '.join(names)}"
            for decision, names in sorted(groups.items())
        )
        chosen = [self.mode if self.active else "inactive", *(f"{key}={value}" for key, value in self.options.items())]
        return f"verl-mtp-plugin {self.version} ({', '.join(chosen)}) {decisions or 'no patches'}"

    def summary(self) -> str:
        """One line that counts the patch sets by decision and names those that could not be applied, with the reason.

        A set in which a patch is not needed, and another applied, is applied.
        """
        sets: dict[tuple[str, str], list[PatchRecord]] = {}
        for record in self.patches:
            sets.setdefault((record.patch_set, record.package), []).append(record)
        counts: Counter[Decision] = Counter()
        broken: list[str] = []
        for records in sets.values():
            decision = min((record.decision for record in records), key=_WEIGHT.index)
            counts[decision] += 1
            if decision not in _COUNTED:
                # Those that are not applied because of another of their set say so; the other one says why.
                worst = min(
                    records, key=lambda r: (r.decision in _COUNTED, r.detail.startswith("not applied, because"))
                )
                broken.append(f"{worst.name} is {worst.decision} ({worst.detail})")
        line = ", ".join(f"{counts[decision]} {text}" for decision, text in _COUNTED.items() if counts[decision])
        failed = f"{len(broken)} not applied: {'; '.join(broken)}" if broken else "none failed"
        return f"verl-mtp-plugin {self.version} at the start of training: {line or 'no patch sets'}; {failed}"
