"""Decides, applies and reverts patch sets: all of a set, or nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable
from types import ModuleType
from typing import TYPE_CHECKING

from ..environment import Environment
from ..errors import ForeignPatchError, PatchRequiredError
from .arming import ModuleWatch
from .change import Change, plan
from .needs import Needs, missing
from .patch import BROKEN, SATISFIED, Decision, Patch, PatchSet, Verdict, as_patch_set, unsupported

if TYPE_CHECKING:
    from .report import PatchRecord

logger = logging.getLogger(__name__)


class _Entry:
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


class _Unit:
    """A patch set in this process."""

    def __init__(self, patch_set: PatchSet) -> None:
        self.patch_set = patch_set
        self.entries = [_Entry(patch) for patch in patch_set.patches]
        self.order = 0  # when it was applied: reverting goes backwards


class PatchEngine:
    """Arms, decides, applies, reverts and reports patch sets.

    Thread safe and idempotent. Nothing is imported: a set is decided once all its modules have been imported by
    somebody else, and looked at again when a module is that its patches call besides. What a probe or builder raises is
    recorded as FAILED and logged once, never passed on to the import that triggered it.
    """

    def __init__(self, environment: Environment | None = None) -> None:
        self.environment = environment or Environment()
        self._lock = threading.RLock()
        self._units: dict[str, _Unit] = {}
        self._applied = 0
        self._watch = ModuleWatch(self._module_ready)

    # -- arming -------------------------------------------------------------------------------------------------

    def arm(self, items: Iterable[Patch | PatchSet]) -> None:
        """Register patch sets; those whose modules are imported already are decided at once.

        A set that is armed already is left alone. A patch whose id or target is taken by another set is a CONFLICT,
        and with it its whole set.
        """
        added: list[PatchSet] = []
        with self._lock:
            for item in items:
                patch_set = as_patch_set(item)
                known = self._units.get(patch_set.id)
                if known is None:
                    self._units[patch_set.id] = self._new_unit(patch_set)
                elif all(entry.decision in (Decision.REVERTED, Decision.SKIPPED) for entry in known.entries):
                    self._units[patch_set.id] = self._new_unit(known.patch_set)
                else:
                    continue
                added.append(patch_set)
        # Outside the lock: watching may fire at once, and an import running in another thread may hold a module lock
        # while it waits for ours.
        for patch_set in added:
            for module in sorted(patch_set.modules | patch_set.needed_modules):
                self._watch.watch(module)
        self.settle()

    def _new_unit(self, patch_set: PatchSet) -> _Unit:
        unit = _Unit(patch_set)
        others = [e.patch for u in self._units.values() if u.patch_set.id != patch_set.id for e in u.entries]
        for patch in patch_set.patches:
            for other in others:
                if other.id == patch.id or other.target == patch.target:
                    self._decide_all(unit, Decision.CONFLICT, f"{patch.target} is already patched by {other.id!r}")
        return unit

    def skip(self, items: Iterable[Patch | PatchSet], detail: str) -> None:
        """Record sets that a setting turned off, so that the report can name them."""
        with self._lock:
            for item in items:
                patch_set = as_patch_set(item)
                unit = self._units.setdefault(patch_set.id, _Unit(patch_set))
                self._decide_all(unit, Decision.SKIPPED, detail)

    # -- deciding and applying -----------------------------------------------------------------------------------

    def _module_ready(self, name: str) -> None:
        self.settle()

    def settle(self) -> None:
        """Decide every armed set whose modules are there, and put back what a reload of its module has undone."""
        with self._lock:
            for unit in self._units.values():
                self._notice_reload(unit)
                if all(entry.decision is Decision.ARMED for entry in unit.entries):
                    modules = {name: self._watch.ready_module(name) for name in unit.patch_set.modules}
                    ready = {name: module for name, module in modules.items() if module is not None}
                    if len(ready) == len(modules):
                        self._decide(unit, ready)
                self._look_again(unit)

    def _notice_reload(self, unit: _Unit) -> None:
        if any(entry.change is not None and entry.change.reloaded for entry in unit.entries):
            logger.info("a module of %s was reloaded: applying it again", unit.patch_set.id)
            unit.entries = [_Entry(entry.patch) for entry in unit.entries]

    def _decide(self, unit: _Unit, modules: dict[str, ModuleType]) -> None:
        changes: dict[str, Change] = {}
        for entry in unit.entries:
            try:
                verdict, change = plan(entry.patch, modules[entry.patch.target.module], self.environment)
            except Exception as error:  # a probe of ours or of a third party; the import must go on
                verdict, change = Verdict(Decision.FAILED, f"{type(error).__name__}: {error}"), None
            if change is not None:
                verdict = self._look(entry) or verdict
            entry.settle(verdict)
            if entry.broken:
                self._abandon(unit, entry)
                return
            if change is not None:
                changes[entry.patch.id] = change
        if self._apply(unit, changes):
            self._applied += 1
            unit.order = self._applied
        logger.debug("%s: %s", unit.patch_set.id, ", ".join(str(e.decision) for e in unit.entries))

    def _look(self, entry: _Entry) -> Verdict | None:
        """Look at what the patch calls, as far as it has been imported: a verdict if something is missing."""
        problems, entry.unseen = missing(entry.unseen, self._watch.ready_module)
        if not problems:
            return None
        return unsupported(
            found="; ".join(problems),
            expected="what the patch calls besides its target",
            advice="update verl-mtp-plugin, or use a release that it was tested with",
        )

    def _look_again(self, unit: _Unit) -> None:
        """A module that a patch calls was imported after the patch was applied: what does not fit is taken back."""
        for entry in unit.entries:
            if entry.decision is not Decision.APPLIED or not entry.unseen:
                continue
            verdict = self._look(entry)
            if verdict is not None:
                self._undo(unit)
                entry.settle(verdict)
                self._abandon(unit, entry)
                return

    @staticmethod
    def _undo(unit: _Unit) -> None:
        """Restore what is still ours."""
        for entry in reversed(unit.entries):
            if entry.change is not None and entry.change.intact:
                entry.change.restore()
            entry.change = None

    def _apply(self, unit: _Unit, changes: dict[str, Change]) -> bool:
        """Apply all changes of a set; if one fails, undo those before it. Whether anything was changed."""
        done: list[Change] = []
        for entry in unit.entries:
            change = changes.get(entry.patch.id)
            if change is None:
                continue
            try:
                change.apply()
            except Exception as error:  # an owner that refuses
                for earlier in reversed(done):
                    earlier.restore()
                entry.decision, entry.detail = Decision.FAILED, f"{type(error).__name__}: {error}"
                self._abandon(unit, entry)
                return False
            done.append(change)
        for entry in unit.entries:
            entry.change = changes.get(entry.patch.id)
        return bool(done)

    def _abandon(self, unit: _Unit, culprit: _Entry) -> None:
        """All or nothing: one patch of the set cannot be applied, so none is."""
        logger.warning(
            "verl-mtp-plugin: patch %s is %s: %s", culprit.patch.id, culprit.decision, culprit.detail or "no detail"
        )
        for entry in unit.entries:
            if entry is not culprit:
                detail = f"not applied, because {culprit.patch.id} of the same set is {culprit.decision}"
                entry.settle(Verdict(Decision.UNSUPPORTED, detail))

    @staticmethod
    def _decide_all(unit: _Unit, decision: Decision, detail: str) -> None:
        for entry in unit.entries:
            entry.decision, entry.detail = decision, detail

    # -- taking back ----------------------------------------------------------------------------------------------

    def revert_all(self, *, keep: Collection[str] = ()) -> None:
        """Restore every attribute that is still ours, last in first out. Armed sets stop waiting.

        Live instances keep what they were built with.

        Args:
            keep: ids of patch sets to leave in place.

        Raises:
            ForeignPatchError: some attribute was replaced by somebody else after us. It is left as it is; all
                others are restored before the error is raised.
        """
        foreign: list[str] = []
        with self._lock:
            units = [unit for unit in self._units.values() if unit.patch_set.id not in keep]
            for unit in sorted(units, key=lambda u: u.order, reverse=True):
                for entry in reversed(unit.entries):
                    change = entry.change
                    if change is not None and not change.intact and not change.reloaded:
                        foreign.append(f"{entry.patch.target} (now {change.holder()})")
                        entry.decision, entry.detail = Decision.CONFLICT, "replaced by somebody else; not restored"
                        continue
                    if change is not None and change.intact:
                        change.restore()
                    if entry.decision is not Decision.SKIPPED:
                        entry.decision, entry.detail = Decision.REVERTED, ""
                    entry.change = None
        if foreign:
            raise ForeignPatchError(
                found=f"another patch on top of ours at {', '.join(foreign)}",
                expected="our own replacement, to be able to restore the original",
                advice="Remove the other patch first, then call deactivate() again.",
            )

    # -- asking ---------------------------------------------------------------------------------------------------

    def records(self) -> tuple[PatchRecord, ...]:
        """Every patch with its decision as of now, in the order of registration."""
        self.settle()
        with self._lock:
            return tuple(self._record(unit, entry) for unit in self._units.values() for entry in unit.entries)

    @staticmethod
    def _record(unit: _Unit, entry: _Entry) -> PatchRecord:
        from .report import PatchRecord  # only who asks pays for it: this module is loaded at `import verl`

        decision, detail = entry.decision, entry.detail
        if entry.change is not None and decision is Decision.APPLIED and not entry.change.intact:
            decision, detail = Decision.CONFLICT, f"replaced after us by {entry.change.holder()}"
        return PatchRecord.of(entry.patch, unit.patch_set.id, decision, detail)

    def require(self, patch_id: str) -> None:
        """Return if the patch is applied or not needed, and raise otherwise.

        Raises:
            PatchRequiredError: unknown id, still waiting for its module, or not applicable here.
        """
        records = self.records()
        matches = [r for r in records if patch_id in (r.id, r.patch_set)]
        if not matches:
            raise PatchRequiredError(
                found=f"no patch {patch_id!r}",
                expected=f"one of {', '.join(r.id for r in records) or '(none registered)'}",
                advice="Call activate() first, and check VERL_MTP_PLUGIN is not off.",
            )
        for record in matches:
            if record.decision not in SATISFIED:
                raise PatchRequiredError(
                    found=f"patch {record.id} {record.decision}" + (f" ({record.detail})" if record.detail else ""),
                    expected=f"{record.target} patched, because otherwise: {record.reason}",
                    advice=f"Run `verl-mtp doctor`; related upstream work: {record.upstream}.",
                )
