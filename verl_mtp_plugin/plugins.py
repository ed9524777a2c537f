"""Finds the packages that give us patches and models. One that is broken is named and left out.

Each has a plugin manager of its own, so that whatever one registers can be no other's fault.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import pluggy

from . import hookspecs
from .environment import Environment
from .errors import DefinitionError, said, shown
from .installed_hooks import Unreadable, distribution, installed
from .patching.patch import Patch, PatchSet
from .plugin_checks import check_hooks

if TYPE_CHECKING:
    from .models.family import ModelFamily
    from .patching.report import PluginRecord

logger = logging.getLogger(__name__)

#: Our own patch sets; registered by name, so that a checkout on PYTHONPATH, which has no entry points, works too.
BUILTIN: Final = (
    EntryPoint("job", "verl_mtp_plugin.job.hooks", hookspecs.PROJECT),
    EntryPoint("training", "verl_mtp_plugin.training.hooks", hookspecs.PROJECT),
    EntryPoint("bridges", "verl_mtp_plugin.bridges.hooks", hookspecs.PROJECT),
    EntryPoint("rollout", "verl_mtp_plugin.rollout.hooks", hookspecs.PROJECT),
    EntryPoint("models", "verl_mtp_plugin.models.families", hookspecs.PROJECT),
)
#: More patches or models than this are a hook that never ends.
_MOST: Final = 10_000


class _Package:
    """One registered package: what it is called, and what it brings."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.error = ""
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)

    def __str__(self) -> str:
        return f"plugin {self.name!r} from {self.source}"

    def leave_out(self, doing: str, error: BaseException) -> None:
        """Say once what is wrong; nothing of the package is asked again."""
        self.error = f"{doing}: {said(error)}"
        logger.warning("verl-mtp-plugin: %s is left out: %s", self, self.error)

    def load(self, point: EntryPoint) -> None:
        self.manager.add_hookspecs(hookspecs)
        try:
            loaded = point.load()
            self.manager.register(loaded, name=self.name)
            check_hooks(self.manager, loaded)
        except KeyboardInterrupt:  # the user's, not the package's
            raise
        except BaseException as error:  # an exit too
            self.leave_out("loading it failed", error)

    def give(self, hook: str, kind: tuple[type, ...], **arguments: Any) -> list[Any]:
        """What the package returns from ``hook``; nothing from one that is left out, now or before."""
        if self.error:
            return []
        try:
            return list(self._items(hook, kind, arguments))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.leave_out(f"{hook} failed", error)
            return []

    def _items(self, hook: str, kind: tuple[type, ...], arguments: dict[str, Any]) -> Iterator[Any]:
        caller = getattr(self.manager.hook, hook)
        asked = [impl for impl in caller.get_hookimpls() if not (impl.hookwrapper or impl.wrapper)]
        results = caller(**arguments) if asked else []
        expected = f"a list of {' or '.join(each.__name__ for each in kind)}"
        if len(results) < len(asked):  # pluggy leaves out None
            raise DefinitionError(
                found=f"{hook} that returned None",
                expected=expected,
                advice="Return [] where there is nothing to give.",
            )
        for result in results:
            if isinstance(result, str | bytes | Mapping) or not isinstance(result, Iterable):
                advice = "Put it into a list." if isinstance(result, kind) else "Correct what the hook returns."
                raise DefinitionError(found=f"{hook} that returned {shown(result)}", expected=expected, advice=advice)
            for number, item in enumerate(islice(result, _MOST + 1)):
                if not isinstance(item, kind):
                    raise DefinitionError(
                        found=f"{shown(item)} in what {hook} returned",
                        expected=expected,
                        advice="See verl_mtp_plugin.hookspecs for what it must return.",
                    )
                if number == _MOST:
                    raise DefinitionError(
                        found=f"{hook} that returned more than {_MOST} items",
                        expected=expected,
                        advice="Correct the hook: it may never end.",
                    )
                yield item


class Plugins:
    """The packages registered under the entry-point group ``verl_mtp_plugin``, the built-in ones first."""

    def __init__(self, found: tuple[EntryPoint, ...] | None = None) -> None:
        self.complete = found is None  # with all that is installed
        self._builtin = [_Package(point.name, point.value) for point in BUILTIN]
        self._others: list[_Package] = []
        for package, point in zip(self._builtin, BUILTIN, strict=True):
            package.load(point)
        for each in installed() if found is None else found:
            if isinstance(each, Unreadable) or not each.value.startswith(f"{hookspecs.PROJECT}."):  # ours are there
                self._add(each)

    def _add(self, point: EntryPoint | Unreadable) -> None:
        source = point.source if isinstance(point, Unreadable) else _source(point)
        package = _Package(point.name, source)
        self._others.append(package)
        if isinstance(point, Unreadable):
            package.leave_out("reading its entry points failed", point.error)
            return
        holder = next((p for p in (*self._builtin, *self._others) if p.name == point.name), package)
        if holder is not package:
            whose = "one of verl-mtp-plugin's own" if holder in self._builtin else f"that of {holder.source}"
            package.leave_out(
                "its entry point cannot be told apart",
                DefinitionError(
                    found=f"the entry point {point.name!r} of {source}, a name that is {whose} too",
                    expected="a name in the group verl_mtp_plugin that nobody else has",
                    advice="Call it after your package.",
                ),
            )
            return
        package.load(point)

    def patches(self, environment: Environment) -> list[Patch | PatchSet]:
        """All patches, in the order in which packages registered."""
        return [patch for _, patches in self.patches_by_package(environment) for patch in patches]

    def patches_by_package(self, environment: Environment) -> list[tuple[str, list[Patch | PatchSet]]]:
        """The patches of each package, with its name for messages: "" for the built-in ones."""
        kind = (Patch, PatchSet)
        return [
            (
                "" if package in self._builtin else str(package),
                package.give("verl_mtp_patches", kind, environment=environment),
            )
            for package in (*self._builtin, *self._others)
        ]

    def models(self) -> list[ModelFamily]:
        """All model families."""
        from .models.family import ModelFamily

        packages = (*self._builtin, *self._others)
        return [family for package in packages for family in package.give("verl_mtp_models", (ModelFamily,))]

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """Who registered, and who could not."""
        from .patching.report import PluginRecord

        return tuple(PluginRecord(p.name, p.source, p.error) for p in (*self._builtin, *self._others))


def _source(point: EntryPoint) -> str:
    """Where an entry point leads, and whose it is."""
    owner = distribution(point)
    return f"{point.value} ({owner})" if owner else point.value
