"""One attribute changed, and how to take it back. The only place that writes to foreign objects."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..environment import Environment
from ..errors import DefinitionError, shown
from .patch import MISSING, Decision, Patch, Verdict


class Change:
    """An attribute as it was, and as we leave it."""

    def __init__(self, patch: Patch, module: ModuleType, owner: Any, name: str, replacement: Any) -> None:
        self._module = patch.target.module
        self._spec = module.__spec__  # a reload puts a new one
        self._owner = owner
        self._name = name
        self._before = vars(owner).get(name, MISSING)  # MISSING when the attribute was inherited or is new
        self._replacement = replacement

    def apply(self) -> None:
        """Put the replacement in place."""
        setattr(self._owner, self._name, self._replacement)

    def restore(self) -> None:
        """Put back what was there: the raw entry of ``vars(owner)``, or none."""
        if self._before is MISSING:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._before)

    @property
    def intact(self) -> bool:
        """Whether the attribute is still ours."""
        return self._current is self._replacement

    @property
    def _current(self) -> Any:
        return vars(self._owner).get(self._name, MISSING)

    @property
    def reloaded(self) -> bool:
        """Whether the module has been executed anew since: then the attribute is gone, and nobody was told."""
        module = sys.modules.get(self._module)
        return module is not None and module.__spec__ is not self._spec

    def holder(self) -> str:
        """What is there now, for a message."""
        value = self._current
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        return f"{module}.{name}" if module and name else repr(value)


def plan(patch: Patch, module: ModuleType, environment: Environment) -> tuple[Verdict, Change | None]:
    """Probe and build; the change, not yet applied, if the verdict is to apply it.

    Raises:
        DefinitionError: the probe returned no Verdict, or the builder nothing that can stand there.
    """
    *path, name = patch.target.qualname.split(".")
    owner: Any = module
    for step in path:
        owner = getattr(owner, step, MISSING)
        if owner is MISSING:
            return _absent(patch, f"{patch.target.module} has no {'.'.join(path)}"), None
    original = inspect.getattr_static(owner, name, MISSING)
    if original is MISSING and not patch.creates:
        return _absent(patch, f"{patch.target} does not exist"), None
    verdict = _probed(patch, environment, module)
    if verdict.decision is not Decision.APPLIED:
        return verdict, None
    beneath = _patched_by(owner, name, module)
    if beneath:
        note = f"on top of a patch from {beneath}"
        verdict = Verdict(verdict.decision, f"{verdict.detail}; {note}" if verdict.detail else note)
    return verdict, Change(patch, module, owner, name, _built(patch, original))


def _probed(patch: Patch, environment: Environment, module: ModuleType) -> Verdict:
    verdict: Any = patch.decide(environment, module)
    if not isinstance(verdict, Verdict):
        raise DefinitionError(
            found=f"decide of patch {patch.id} that returned {shown(verdict)}",
            expected="a Verdict",
            advice="Return applicable(), not_needed(...) or unsupported(...) in every branch.",
        )
    return verdict


def _built(patch: Patch, original: Any) -> Any:
    replacement = patch.build(original)
    if replacement is MISSING or (_is_code(original) and not _is_code(replacement)):
        raise DefinitionError(
            found=f"build of patch {patch.id} that returned {shown(replacement)} for {patch.target}",
            expected="something that can be called" if _is_code(original) else "what shall stand there",
            advice="Return the replacement from build (a forgotten return?).",
        )
    return replacement


def _is_code(value: Any) -> bool:
    """Whether a value in ``vars(owner)`` is called or asked as an attribute: a function, a class, any descriptor."""
    return value is not MISSING and (callable(value) or hasattr(type(value), "__get__"))


def _absent(patch: Patch, detail: str) -> Verdict:
    return Verdict(Decision.NOT_NEEDED if patch.absent_ok else Decision.UNSUPPORTED, detail)


def _patched_by(owner: Any, name: str, module: ModuleType) -> str:
    """The module whose function stands at this place, if it is not the owner's own; "" otherwise."""
    before = vars(owner).get(name)
    home = getattr(before, "__module__", None)
    if not inspect.isfunction(before) or home in (module.__name__, vars(owner).get("__module__")):
        return ""
    if vars(sys.modules.get(home or "", module)).get(name) is before:
        return ""  # imported from where it is defined
    return str(home)


def around(wrapper: Callable[..., Any]) -> Callable[[Any], Any]:
    """A builder from ``wrapper(original, *args, **kwargs)``, safe on classes that become Ray actors."""

    def build(original: Any) -> Any:
        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        return replacement

    return build
