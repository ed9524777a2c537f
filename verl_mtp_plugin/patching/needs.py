"""What a patch calls of upstream besides its target, as data, and whether it is there and can be called so.

``applied`` is a promise that the patch works. A target that looks as expected says nothing of the helper that the
replacement calls, so each patch lists those, and the engine looks at all of them. A name is looked at once its module
has been imported by somebody else; nothing is imported to look.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final

from ..definitions import Fields
from .patch import Patch, PatchSet

_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Needs:
    """Something of upstream that a patch's code uses.

    Args:
        where: ``module:dotted.name``; or a module alone, for a patch that is at home nowhere without it.
        positional: how many arguments it is called with by position (``self`` counts on a method that is named through
            its class). None, without ``keywords``: it is not called, or not by us.
        keywords: the names of the arguments that it is given by keyword.
        attributes: what instances of this class must have: set by one of its methods, a field, or an attribute of the
            class.
        check: looks at the object itself, or calls it; returns what is wrong with it, "" if nothing is.
        optional: our code does without it where it does not exist; where it does, all of the above must hold.
        otherwise: what our code uses in its place where it does not exist.
    """

    where: str
    positional: int | None = None
    keywords: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    check: Callable[[Any], str] | None = None
    optional: bool = False
    otherwise: Needs | None = None

    def __post_init__(self) -> None:
        fields = Fields(self, "where")
        fields.text("where")
        fields.texts("keywords", "attributes")
        fields.flag("optional")
        if self.check is not None:
            fields.function("check")
        if self.otherwise is not None:
            fields.instance("otherwise", Needs, "Needs, or None")

    @property
    def module(self) -> str:
        """The module that has to be imported before this can be looked at."""
        return self.where.partition(":")[0]

    def missing(self, module: ModuleType) -> str:
        """What of this ``module`` lacks, in words for a user; "" if it has all of it."""
        found: Any = module
        for step in filter(None, self.where.partition(":")[2].split(".")):
            found = getattr(found, step, _ABSENT)
            if found is _ABSENT:
                if self.otherwise is not None:
                    return self.otherwise.missing(module)
                return "" if self.optional else f"{self.where} does not exist"
        for problem in (_call(self, found), _attributes(self, found), self.check(found) if self.check else ""):
            if problem:
                return f"{self.where} {problem}"
        return ""


def missing(needs: Iterable[Needs], ready: Callable[[str], ModuleType | None]) -> tuple[list[str], tuple[Needs, ...]]:
    """What of ``needs`` is missing, and those whose modules are not there yet (``ready`` returns None for them)."""
    problems, later = [], []
    for need in needs:
        module = ready(need.module)
        if module is None:
            later.append(need)
        elif problem := need.missing(module):
            problems.append(problem)
    return problems, tuple(later)


def with_needs(
    patches: Iterable[Patch | PatchSet], table: Mapping[str, Sequence[Needs]]
) -> tuple[Patch | PatchSet, ...]:
    """``patches``, each with what ``table`` lists under its id or its set's id, besides what it has already."""

    def complete(patch: Patch, patch_set: str) -> Patch:
        listed = dict.fromkeys((*table.get(patch_set, ()), *table.get(patch.id, ())))
        return replace(patch, needs=(*patch.needs, *listed)) if listed else patch

    return tuple(
        PatchSet(item.id, tuple(complete(patch, item.id) for patch in item.patches))
        if isinstance(item, PatchSet)
        else complete(item, item.id)
        for item in patches
    )


def _call(need: Needs, found: Any) -> str:
    if need.positional is None and not need.keywords:
        return ""
    if not callable(found):
        return "is not callable"
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # of C, without a signature: nothing can be said
        return ""
    try:
        signature.bind(*[None] * (need.positional or 0), **dict.fromkeys(need.keywords))
    except TypeError as error:
        return f"cannot be called as the patch does: {error} (it takes {signature})"
    return ""


def _attributes(need: Needs, found: Any) -> str:
    lacking = set(need.attributes)
    for owner in getattr(found, "__mro__", (found,)):
        if not lacking:
            return ""
        # Not getattr: a class that has no annotations is given a dict of them by being asked.
        lacking -= vars(owner).keys() | vars(owner).get("__annotations__", {}).keys()
        if lacking and _made_elsewhere(owner):
            return ""
        for method in vars(owner).values() if lacking else ():
            lacking -= _sets(getattr(method, "__func__", method))
    return f"has no {', '.join(sorted(lacking))}" if lacking else ""


def _made_elsewhere(owner: Any) -> bool:
    """Whether somebody has replaced a class's ``__init__`` and kept the original to himself: nothing can be said."""
    made = vars(owner).get("__init__") if isinstance(owner, type) else None
    code = getattr(inspect.unwrap(made), "__code__", None) if callable(made) else None
    file = getattr(sys.modules.get(getattr(owner, "__module__", "")), "__file__", None)
    if code is None or file is None:
        return False
    return not code.co_filename.startswith("<") and code.co_filename != file  # "<string>": a dataclass


def _sets(method: Any) -> set[str]:
    """The attributes, of whatever object, that a function's own code sets."""
    code = getattr(inspect.unwrap(method) if callable(method) else None, "__code__", None)
    if code is None:
        return set()
    return {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_ATTR"}
