"""Decides, applies and reverts patch sets: all of a set, or nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from ..environment import Environment
from ..errors import ForeignPatchError, PatchRequiredError, said
from .arming import ModuleWatch
from .change import Change, plan
from .needs import missing
from .patch import SATISFIED, Decision, Patch, PatchSet, Verdict, as_patch_set, unsupported
from .units import Entry, Unit, clash_of, unknown

if TYPE_CHECKING:
    from .report import PatchRecord

logger = logging.getLogger(__name__)


class PatchEngine:
    """Arms, decides, applies, reverts and reports patch sets.

    Thread safe and idempotent. Nothing is imported: a set is decided once all its modules have been imported by
    somebody else, and looked at again when a module is that its patches call besides. What a probe or builder raises is
    recorded as FAILED and logged once, never passed on to the import that triggered it.
    """

    def __init__(self, environment: Environment | None = None) -> None:
        self.environment = environment or Environment()
        self._lock = threading.RLock()
        self._units: list[Unit] = []  # in the order of registration
        self._applied = 0
        self._watch = ModuleWatch(self._module_ready)

    # -- arming -------------------------------------------------------------------------------------------------

    def arm(self, items: Iterable[Patch | PatchSet], *, package: str = "") -> None:
        """Register patch sets; those whose modules are imported already are decided at once.

        A set that is armed already is left alone. A patch whose id or target is taken by another set is a CONFLICT,
        and with it its whole set.

        Args:
            package: who brings them, for messages.
        """
        added: list[PatchSet] = []
        with self._lock:
            for unit, known in self._register(items, package):
                if known and not all(e.decision in (Decision.REVERTED, Decision.SKIPPED) for e in unit.entries):
                    continue
                self._begin(unit)
                added.append(unit.patch_set)
        # Outside the lock: watching may fire at once, and an import running in another thread may hold a module lock
        # while it waits for ours.
        for patch_set in added:
            for module in sorted(patch_set.modules | patch_set.needed_modules):
                self._watch.watch(module)
        self.settle()

    def _register(self, items: Iterable[Patch | PatchSet], package: str) -> Iterator[tuple[Unit, bool]]:
        """The unit of each set, and whether it was there before."""
        listed: list[Unit] = []
        for item in items:
            patch_set = as_patch_set(item)
            same = [
                unit
                for unit in self._units
                if unit.package == package
                and unit.describes(patch_set)
                and (unit not in listed or unit.patch_set == patch_set)
            ]
            unit = same[0] if same else Unit(patch_set, package)
            if not same:
                self._units.append(unit)
            listed.append(unit)
            yield unit, bool(same)

    def _begin(self, unit: Unit) -> None:
        """Let a unit wait for its modules, or leave it out if an earlier one has its id or target."""
        unit.entries = [Entry(patch) for patch in unit.patch_set.patches]
        unit.left_out = False
        for other in self._units[: self._units.index(unit)]:
            clash = "" if other.left_out else clash_of(unit, other)
            if clash:
                unit.left_out = True
                self._decide_all(unit, Decision.CONFLICT, clash)
                logger.warning("verl-mtp-plugin: patch set %s is left out: %s", unit.named(unit.patch_set.id), clash)
                return

    def skip(self, items: Iterable[Patch | PatchSet], detail: str, *, package: str = "") -> None:
        """Record sets that a setting turned off, so that the report can name them."""
        with self._lock:
            for unit, _ in self._register(items, package):
                self._decide_all(unit, Decision.SKIPPED, detail)

    # -- deciding and applying -----------------------------------------------------------------------------------

    def _module_ready(self, name: str) -> None:
        self.settle()

    def settle(self) -> None:
        """Decide every armed set whose modules are there, and put back what a reload of its module has undone."""
        with self._lock:
            for unit in self._units:
                self._notice_reload(unit)
                if all(entry.decision is Decision.ARMED for entry in unit.entries):
                    modules = {name: self._watch.ready_module(name) for name in unit.patch_set.modules}
                    ready = {name: module for name, module in modules.items() if module is not None}
                    if len(ready) == len(modules):
                        self._decide(unit, ready)
                self._look_again(unit)

    def _notice_reload(self, unit: Unit) -> None:
        if any(entry.change is not None and entry.change.reloaded for entry in unit.entries):
            logger.info("a module of %s was reloaded: applying it again", unit.patch_set.id)
            unit.entries = [Entry(entry.patch) for entry in unit.entries]

    def _decide(self, unit: Unit, modules: dict[str, ModuleType]) -> None:
        changes: dict[str, Change] = {}
        for entry in unit.entries:
            try:
                verdict, change = plan(entry.patch, modules[entry.patch.target.module], self.environment)
            except KeyboardInterrupt:  # the user's; what was not decided is decided the next time
                unit.entries = [Entry(patch) for patch in unit.patch_set.patches]
                raise
            except BaseException as error:  # a probe of ours or of a third party, be it an exit; the import must go on
                verdict, change = Verdict(Decision.FAILED, said(error)), None
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

    def _look(self, entry: Entry) -> Verdict | None:
        """Look at what the patch calls, as far as it has been imported: a verdict if something is missing."""
        try:
            problems, entry.unseen = missing(entry.unseen, self._watch.ready_module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a check of ours or of a third party
            entry.unseen = ()
            return Verdict(Decision.FAILED, said(error))
        if not problems:
            return None
        return unsupported(
            found="; ".join(problems),
            expected="what the patch calls besides its target",
            advice="update verl-mtp-plugin, or use a release that it was tested with",
        )

    def _look_again(self, unit: Unit) -> None:
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
    def _undo(unit: Unit) -> None:
        """Restore what is still ours."""
        for entry in reversed(unit.entries):
            if entry.change is not None and entry.change.intact:
                entry.change.restore()
            entry.change = None

    def _apply(self, unit: Unit, changes: dict[str, Change]) -> bool:
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
                entry.decision, entry.detail = Decision.FAILED, said(error)
                self._abandon(unit, entry)
                return False
            done.append(change)
        for entry in unit.entries:
            entry.change = changes.get(entry.patch.id)
        return bool(done)

    def _abandon(self, unit: Unit, culprit: Entry) -> None:
        """All or nothing: one patch of the set cannot be applied, so none is."""
        logger.warning(
            "verl-mtp-plugin: patch %s is %s: %s",
            unit.named(culprit.patch.id),
            culprit.decision,
            culprit.detail or "no detail",
        )
        for entry in unit.entries:
            if entry is not culprit:
                detail = f"not applied, because {culprit.patch.id} of the same set is {culprit.decision}"
                entry.settle(Verdict(Decision.UNSUPPORTED, detail))

    @staticmethod
    def _decide_all(unit: Unit, decision: Decision, detail: str) -> None:
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
            units = [unit for unit in self._units if unit.patch_set.id not in keep]
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
            return tuple(self._record(unit, entry) for unit in self._units for entry in unit.entries)

    def _record(self, unit: Unit, entry: Entry) -> PatchRecord:
        from .report import PatchRecord  # only who asks pays for it: this module is loaded at `import verl`

        decision, detail = entry.decision, entry.detail
        if entry.change is not None and decision is Decision.APPLIED and not entry.change.intact:
            decision, detail = Decision.CONFLICT, f"replaced after us by {entry.change.holder()}"
        if decision is Decision.ARMED:
            detail = f"waits for {', '.join(self._awaited(unit))}"
        return PatchRecord.of(entry.patch, unit.patch_set.id, decision, detail, unit.package)

    def _awaited(self, unit: Unit) -> list[str]:
        """The modules that a set waits for."""
        return [name for name in sorted(unit.patch_set.modules) if self._watch.ready_module(name) is None]

    def require(self, patch_id: str) -> None:
        """Return if the patch is applied or not needed, and raise otherwise.

        Raises:
            PatchRequiredError: unknown id, still waiting for its module, or not applicable here.
        """
        self.settle()
        with self._lock:
            # A set that is left out because its id is taken is not the one that is asked for, if there is another.
            units = sorted((u for u in self._units if patch_id in u.ids), key=lambda unit: unit.left_out)
            asked = [unit for unit in units if unit.left_out == units[0].left_out]
            entries = [(u, e) for u in asked for e in u.entries if patch_id in (u.patch_set.id, e.patch.id)]
            records = [(self._record(unit, entry), self._awaited(unit)) for unit, entry in entries]
        if not records:
            raise unknown(self._units, patch_id)
        for record, awaited in records:
            if record.decision not in SATISFIED:
                advice = f"Run `verl-mtp doctor`; related upstream work: {record.upstream}."
                if record.decision is Decision.ARMED:
                    advice = f"Import {' and '.join(awaited)} first: the patch is decided then. {advice}"
                raise PatchRequiredError(
                    found=f"patch {record.name} {record.decision}" + (f" ({record.detail})" if record.detail else ""),
                    expected=f"{record.target} patched, because otherwise: {record.reason}",
                    advice=advice,
                )
