"""Whether what a package registers has hooks at all: marked, and with the names that are asked for."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any, Final

import pluggy

from . import hookspecs
from .errors import DefinitionError, shown

#: The hooks that are asked for.
HOOKS: Final = tuple(sorted(name for name in vars(hookspecs) if name.startswith("verl_mtp_")))
_MARK: Final = f"{hookspecs.PROJECT}_impl"
#: How alike two names are that are taken for one, of 1.
_ALIKE: Final = 0.85


def check_hooks(manager: pluggy.PluginManager, loaded: Any) -> None:
    """Look at a registered module or object.

    Raises:
        DefinitionError: a misspelt hook, one that is not marked with ``@hookimpl``, or none at all.
    """
    callers = manager.get_hookcallers(loaded) or []
    given = {caller.name for caller in callers if caller.has_spec()}
    for caller in callers:
        if not caller.has_spec() and not all(impl.optionalhook for impl in caller.get_hookimpls()):
            raise _refuse(f"the hook {caller.name!r}", _renamed(caller.name))
    for name, function in inspect.getmembers(loaded, inspect.isroutine):
        meant = _meant(name) if not hasattr(function, _MARK) else ""
        if meant and meant not in given and function is not getattr(hookspecs, meant):
            renamed = "" if name == meant else f" and call it {meant}"
            raise _refuse(f"the function {name!r} without @hookimpl", f"Mark it with @hookimpl{renamed}.")
    if not given:
        what = loaded.__name__ if inspect.ismodule(loaded) else shown(loaded)
        raise _refuse(f"no hook in {what}", "Mark its functions with @hookimpl of verl_mtp_plugin.hookspecs.")


def _meant(name: str) -> str:
    return next(iter(get_close_matches(name, HOOKS, 1, _ALIKE)), "")


def _renamed(name: str) -> str:
    near = get_close_matches(name, HOOKS, 1)
    return f"Call it {near[0]}." if near else "Correct its name."


def _refuse(found: str, advice: str) -> DefinitionError:
    return DefinitionError(
        found=found, expected=f"functions marked with @hookimpl: {' or '.join(HOOKS)}", advice=advice
    )
