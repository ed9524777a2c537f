"""A patch set as it stands in this process: what was decided of each patch, and what it takes of another set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..errors import PatchRequiredError, shown
from .change import Change
from .needs import Needs
from .patch import BROKEN, Decision, Patch, PatchSet, Verdict

#: Ids that an error names for one that nobody has: the nearest; all, where they are few.
_NEAREST: Final = 3
_FEW: Final = 8


class Entry:
    """A patch in this process: what was decided, and what was changed."""

    def __init__(self, patch: Patch) -> None:
        self.patch = patch
        self.decision = Decision.ARMED
        self.detail = ""
        self.change: Change | None = None
        self.unseen: tuple[Needs, ...] = patch.needs  # not looked at yet: their modules have not been imported

    def settle(self, verdict: Verdict) -> None:
        """Keep a verdict; an optimization that does not fit is no fault."""
        lost = verdict.decision is Decision.UNSUPPORTED and self.patch.optimization
        self.decision, self.detail = Decision.LOST if lost else verdict.decision, verdict.detail

    @property
    def broken(self) -> bool:
        return self.decision in BROKEN or self.decision is Decision.LOST


class Unit:
    """A patch set in this process."""

    def __init__(self, patch_set: PatchSet, package: str = "") -> None:
        self.patch_set = patch_set
        self.package = package  # who brought it, for messages
        self.entries = [Entry(patch) for patch in patch_set.patches]
        self.order = 0  # when it was applied: reverting goes backwards
        self.left_out = False  # it takes an id or a target that an earlier set has
        #: The names under which it, or a part of it, is asked for.
        self.ids = frozenset({patch_set.id, *(patch.id for patch in patch_set.patches)})
        self.targets = {patch.target: patch.id for patch in patch_set.patches}

    def describes(self, patch_set: PatchSet) -> bool:
        """Whether ``patch_set`` is this one, made anew by a hook that is asked again."""
        if self.patch_set.id != patch_set.id:
            return False
        return self.targets == {patch.target: patch.id for patch in patch_set.patches}

    def named(self, id: str) -> str:
        """``id``, and the package where it is not ours."""
        return f"{id} of {self.package}" if self.package else id


def clash_of(unit: Unit, other: Unit) -> str:
    """What a later set takes of an earlier one; "" if nothing."""
    whose = f" of {other.package}" if other.package else ""
    if not unit.ids.isdisjoint(other.ids):
        places = ", ".join(map(str, other.targets))
        taken = min(unit.ids & other.ids)
        return f"the id {taken!r} is taken by another patch{whose} ({places}); give it an id of its own"
    for target in unit.targets.keys() & other.targets.keys():
        return f"{target} is already patched by {other.targets[target]!r}{whose}"
    return ""


def unknown(units: Iterable[Unit], patch_id: str) -> PatchRequiredError:
    """The error for an id that no set and no patch has: it names the nearest, or all where they are few."""
    ids = list(dict.fromkeys(id for unit in units for id in (unit.patch_set.id, *sorted(unit.ids))))
    if not ids:
        return PatchRequiredError(
            found=f"no patch {patch_id!r}",
            expected="a registered patch; there is none",
            advice="Call activate() first.",
        )
    from difflib import get_close_matches

    near = get_close_matches(str(patch_id), ids, _NEAREST) or (ids if len(ids) <= _FEW else [])
    return PatchRequiredError(
        found=f"no patch {shown(patch_id)}",
        expected=f"one of {', '.join(near)}" if near else f"the id of one of the {len(ids)} patches and sets",
        advice="Correct the id; `verl-mtp doctor` and report().patches list them all.",
    )
