"""What a patch is: data. Nothing here changes anything; see :mod:`.engine` for the one that does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from ..definitions import Fields
from ..environment import Environment
from ..errors import DefinitionError, shown

if TYPE_CHECKING:
    from .needs import Needs


class Decision(str, Enum):
    """What the engine made of a patch in this process."""

    ARMED = "armed"  # waiting for its module to be imported; nothing has changed yet
    APPLIED = "applied"
    NOT_NEEDED = "not_needed"  # upstream has the behavior already
    SKIPPED = "skipped"  # turned off by a setting
    UNSUPPORTED = "unsupported"  # the seam, or something else that the patch calls, is missing or has drifted
    LOST = "lost"  # the same for an optimization: right without it, and slower
    CONFLICT = "conflict"  # someone else holds the same attribute
    FAILED = "failed"  # probing, building or applying raised
    REVERTED = "reverted"

    def __str__(self) -> str:
        return self.value


#: Decisions after which the behavior that the patch promises is there.
SATISFIED: Final = frozenset({Decision.APPLIED, Decision.NOT_NEEDED})
#: Decisions after which it is not, and waiting will not help.
BROKEN: Final = frozenset({Decision.UNSUPPORTED, Decision.CONFLICT, Decision.FAILED})
#: What a probe may answer.
ANSWERS: Final = SATISFIED | BROKEN | {Decision.SKIPPED}


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

    def __post_init__(self) -> None:
        fields = Fields(self, "module")
        fields.dotted("module", "my_lab.models")
        fields.dotted("qualname", "Model.forward")

    def __str__(self) -> str:
        return f"{self.module}:{self.qualname}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A probe's answer: apply, or why not."""

    decision: Decision
    detail: str = ""

    def __post_init__(self) -> None:
        fields = Fields(self, "decision")
        expected = f"one of {', '.join(f'Decision.{answer.name}' for answer in Decision if answer in ANSWERS)}"
        fields.instance("decision", Decision, expected, "Use applicable(), not_needed(...) or unsupported(...).")
        if self.decision not in ANSWERS:
            raise fields.refuse("decision", self.decision, expected, "A probe decides; it does not put off.")
        fields.text("detail", empty=True)


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

    def __post_init__(self) -> None:
        fields = Fields(self, "id")
        fields.text("id")
        advice = "Write target=Target(module, name in it)."
        fields.instance("target", Target, "a Target, such as Target('my_lab.models', 'Model.forward')", advice)
        fields.text("reason", "upstream", empty=True)
        fields.function("build", "decide")
        fields.flag("critical", "creates", "absent_ok", "optimization")
        wrong = [need for need in fields.sequence("needs", "a tuple of Needs") if not hasattr(need, "missing")]
        if wrong:
            raise fields.refuse("needs", wrong[0], "a tuple of Needs, and nothing else")


@dataclass(frozen=True, slots=True)
class PatchSet:
    """Patches that only make sense together: all of them are applied, or none."""

    id: str
    patches: tuple[Patch, ...]

    def __post_init__(self) -> None:
        fields = Fields(self, "id")
        fields.text("id")
        patches = fields.sequence("patches", "a tuple of Patch")
        if not patches:
            raise fields.refuse("patches", patches, "at least one Patch; this one is empty")
        wrong = [item for item in patches if not isinstance(item, Patch)]
        if wrong:
            raise fields.refuse("patches", wrong[0], "a tuple of Patch, and nothing else")
        for what, names in (("id", [p.id for p in patches]), ("target", [str(p.target) for p in patches])):
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise DefinitionError(
                    found=f"PatchSet {shown(self.id)} with the {what} {', '.join(doubled)} more than once",
                    expected=f"another {what} for each patch",
                    advice=f"Change the {what} of one, or make one patch of them.",
                )

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
