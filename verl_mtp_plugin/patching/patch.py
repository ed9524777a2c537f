"""What a patch is: data. Nothing here changes anything; see :mod:`.engine` for the one that does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from ..environment import Environment

if TYPE_CHECKING:
    from .needs import Needs


class Decision(str, Enum):
    """What the engine made of a patch in this process."""

    ARMED = "armed"  # waiting for its module to be imported; nothing has changed yet
    APPLIED = "applied"
    NOT_NEEDED = "not_needed"  # upstream has the behaviour already
    SKIPPED = "skipped"  # turned off by a setting
    UNSUPPORTED = "unsupported"  # the seam, or something else that the patch calls, is missing or has drifted
    LOST = "lost"  # the same for an optimization: right without it, and slower
    CONFLICT = "conflict"  # someone else holds the same attribute
    FAILED = "failed"  # probing, building or applying raised
    REVERTED = "reverted"

    def __str__(self) -> str:
        return self.value


#: Decisions after which the behaviour that the patch promises is there.
SATISFIED: Final = frozenset({Decision.APPLIED, Decision.NOT_NEEDED})
#: Decisions after which it is not, and waiting will not help.
BROKEN: Final = frozenset({Decision.UNSUPPORTED, Decision.CONFLICT, Decision.FAILED})


class _Missing:
    """The attribute does not exist yet (only for patches with ``creates=True``)."""

    def __repr__(self) -> str:
        return "<missing>"


MISSING: Final = _Missing()


@dataclass(frozen=True, slots=True)
class Target:
    """One attribute: a leaf module and a dotted name in it, such as ``Model.forward``.

    The module must be a leaf, since a namespace package never reports that it has been imported.
    """

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}:{self.qualname}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A probe's answer: apply, or why not."""

    decision: Decision
    detail: str = ""


def applicable(detail: str = "") -> Verdict:
    """The patch is needed here and its seam is as expected."""
    return Verdict(Decision.APPLIED, detail)


def not_needed(detail: str) -> Verdict:
    """Upstream behaves already; ``detail`` says how that was seen."""
    return Verdict(Decision.NOT_NEEDED, detail)


def unsupported(*, found: str, expected: str, advice: str) -> Verdict:
    """The seam is not what the patch was written for."""
    return Verdict(Decision.UNSUPPORTED, f"found {found}; expected {expected}; {advice}")


def always(environment: Environment, module: ModuleType) -> Verdict:
    """The probe of a patch that fits wherever its target exists."""
    return applicable()


@dataclass(frozen=True, slots=True)
class Patch:
    """One attribute replaced, and everything a reader wants to know about it.

    ``decide`` looks at the imported module and never imports another one; ``build`` receives the raw attribute as
    it stands in ``vars(owner)`` (or inherited, or :data:`MISSING`) and returns what takes its place. Both run under
    the engine's lock. On classes that become Ray actors ``build`` must return a plain function made with
    :func:`functools.wraps`: a ``wrapt`` proxy is silently stripped when Ray exports the class.
    """

    id: str  # "area.what"
    target: Target
    reason: str  # the symptom a user would see without it
    upstream: str  # PR or issue, and when this patch can be deleted
    build: Callable[[Any], Any]  # original -> replacement
    decide: Callable[[Environment, ModuleType], Verdict] = always
    critical: bool = False  # what it is for must not run without it
    creates: bool = False  # the attribute need not exist before
    absent_ok: bool = False  # some releases have no such target, and then nothing to patch
    needs: tuple[Needs, ...] = ()  # what else of upstream the replacement calls: missing, the patch is unsupported
    optimization: bool = False  # results are the same without it: where it does not fit it is lost, which stops nothing


@dataclass(frozen=True, slots=True)
class PatchSet:
    """Patches that only make sense together: all of them are applied, or none."""

    id: str
    patches: tuple[Patch, ...]

    def __post_init__(self) -> None:
        if not self.patches:
            raise ValueError(f"patch set {self.id!r} is empty: give it at least one Patch")
        ids = [patch.id for patch in self.patches]
        doubled = sorted({i for i in ids if ids.count(i) > 1})
        if doubled:
            raise ValueError(f"patch set {self.id!r} has the id(s) {', '.join(doubled)} more than once: ids are unique")

    @property
    def modules(self) -> frozenset[str]:
        """The leaf modules that must be imported before the set can be decided."""
        return frozenset(patch.target.module for patch in self.patches)

    @property
    def needed_modules(self) -> frozenset[str]:
        """The modules of what the patches call besides; looked at as soon as they are there, and not waited for."""
        return frozenset(need.module for patch in self.patches for need in patch.needs)


def as_patch_set(item: Patch | PatchSet) -> PatchSet:
    """A lone patch is a set of one."""
    return item if isinstance(item, PatchSet) else PatchSet(item.id, (item,))
