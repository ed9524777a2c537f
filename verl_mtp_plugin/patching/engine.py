"""The one place that changes foreign attributes: applies patch sets, all or nothing, and takes them back."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Collection, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..environment import Environment
from ..errors import ForeignPatchError, PatchRequiredError
from .arming import ModuleWatch
from .patch import BROKEN, MISSING, SATISFIED, Decision, Patch, PatchSet, Verdict, as_patch_set

if TYPE_CHECKING:
    from .report import PatchRecord

logger = logging.getLogger(__name__)


class _Applied:
    """One attribute as it was, and as we left it."""

    def __init__(self, owner: Any, name: str, before: Any, replacement: Any) -> None:
        self.owner = owner
        self.name = name
        self.before = before  # the raw entry of vars(owner), MISSING when the attribute was inherited or new
        self.replacement = replacement

    @property
    def current(self) -> Any:
        return vars(self.owner).get(self.name, MISSING)

    @property
    def intact(self) -> bool:
        return self.current is self.replacement

    def restore(self) -> None:
        if self.before is MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.before)


class _Entry:
    """A patch in this process: what was decided, and what was changed."""

    def __init__(self, patch: Patch) -> None:
        self.patch = patch
        self.decision = Decision.ARMED
        self.detail = ""
        self.applied: _Applied | None = None
        self.spec: Any = None  # the module's spec when we applied; a reload puts a new one


class _Unit:
    """A patch set in this process."""

    def __init__(self, patch_set: PatchSet) -> None:
        self.patch_set = patch_set
        self.entries = [_Entry(patch) for patch in patch_set.patches]
        self.order = 0  # when it was applied: reverting goes backwards


class PatchEngine:
    """Arms, decides, applies, reverts and reports patch sets.

    Thread safe and idempotent. Nothing is imported: a set is decided once all its modules have been imported by
    somebody else. What a probe or builder raises is recorded as FAILED and logged once, never passed on to the
    import that triggered it.
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
            for module in sorted(patch_set.modules):
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

    def _notice_reload(self, unit: _Unit) -> None:
        for entry in unit.entries:
            module = sys.modules.get(entry.patch.target.module)
            if entry.applied is not None and module is not None and module.__spec__ is not entry.spec:
                logger.info("%s was reloaded: applying %s again", entry.patch.target.module, unit.patch_set.id)
                unit.entries = [_Entry(e.patch) for e in unit.entries]
                return

    def _decide(self, unit: _Unit, modules: dict[str, ModuleType]) -> None:
        planned: list[tuple[_Entry, _Applied]] = []
        for entry in unit.entries:
            try:
                verdict, applied = self._plan(entry.patch, modules[entry.patch.target.module])
            except Exception as error:  # a probe of ours or of a third party; the import must go on
                verdict, applied = Verdict(Decision.FAILED, f"{type(error).__name__}: {error}"), None
            entry.decision, entry.detail = verdict.decision, verdict.detail
            if verdict.decision in BROKEN:
                self._abandon(unit, entry)
                return
            if applied is not None:
                planned.append((entry, applied))
        done: list[_Applied] = []
        for entry, applied in planned:
            try:
                setattr(applied.owner, applied.name, applied.replacement)
            except Exception as error:  # read-only owner: undo this set's earlier patches
                for earlier in reversed(done):
                    earlier.restore()
                entry.decision, entry.detail = Decision.FAILED, f"{type(error).__name__}: {error}"
                self._abandon(unit, entry)
                return
            done.append(applied)
        for entry, applied in planned:
            entry.applied = applied
            entry.spec = modules[entry.patch.target.module].__spec__
        if done:
            self._applied += 1
            unit.order = self._applied
        logger.debug("%s: %s", unit.patch_set.id, ", ".join(str(e.decision) for e in unit.entries))

    def _plan(self, patch: Patch, module: ModuleType) -> tuple[Verdict, _Applied | None]:
        *path, name = patch.target.qualname.split(".")
        owner: Any = module
        for step in path:
            owner = getattr(owner, step, MISSING)
            if owner is MISSING:
                return _absent(patch, f"{patch.target.module} has no {'.'.join(path)}"), None
        original = inspect.getattr_static(owner, name, MISSING)
        if original is MISSING and not patch.creates:
            return _absent(patch, f"{patch.target} does not exist"), None
        verdict = patch.decide(self.environment, module)
        if verdict.decision is not Decision.APPLIED:
            return verdict, None
        before = vars(owner).get(name, MISSING)
        defined_in = getattr(before, "__module__", None)
        if inspect.isfunction(before) and defined_in not in (module.__name__, owner.__dict__.get("__module__")):
            note = f"on top of a patch from {defined_in}"
            verdict = Verdict(verdict.decision, f"{verdict.detail}; {note}" if verdict.detail else note)
        return verdict, _Applied(owner, name, before, patch.build(original))

    def _abandon(self, unit: _Unit, culprit: _Entry) -> None:
        """All or nothing: one patch of the set cannot be applied, so none is."""
        logger.warning(
            "verl-mtp-plugin: patch %s is %s: %s", culprit.patch.id, culprit.decision, culprit.detail or "no detail"
        )
        for entry in unit.entries:
            if entry is not culprit:
                entry.decision = Decision.UNSUPPORTED
                entry.detail = f"not applied, because {culprit.patch.id} of the same set is {culprit.decision}"

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
                    applied = entry.applied
                    if applied is not None and not applied.intact and entry.spec is self._spec(entry):
                        foreign.append(f"{entry.patch.target} (now {_describe(applied.current)})")
                        entry.decision, entry.detail = Decision.CONFLICT, "replaced by somebody else; not restored"
                        continue
                    if applied is not None and applied.intact:
                        applied.restore()
                    if entry.decision in (Decision.APPLIED, Decision.ARMED, Decision.NOT_NEEDED):
                        entry.decision, entry.detail = Decision.REVERTED, ""
                    entry.applied = None
        if foreign:
            raise ForeignPatchError(
                found=f"another patch on top of ours at {', '.join(foreign)}",
                expected="our own replacement, to be able to restore the original",
                advice="Remove the other patch first, then call deactivate() again.",
            )

    @staticmethod
    def _spec(entry: _Entry) -> Any:
        module = sys.modules.get(entry.patch.target.module)
        return getattr(module, "__spec__", None)

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
        if entry.applied is not None and decision is Decision.APPLIED and not entry.applied.intact:
            decision = Decision.CONFLICT
            detail = f"replaced after us by {_describe(entry.applied.current)}"
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


def _absent(patch: Patch, detail: str) -> Verdict:
    return Verdict(Decision.NOT_NEEDED if patch.absent_ok else Decision.UNSUPPORTED, detail)


def _describe(value: Any) -> str:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(value)


def around(wrapper: Callable[..., Any]) -> Callable[[Any], Any]:
    """A builder from ``wrapper(original, *args, **kwargs)``, safe on classes that become Ray actors."""

    def build(original: Any) -> Any:
        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        return replacement

    return build
