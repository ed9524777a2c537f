"""Finds the packages that give us patches and models. One that is broken is named and left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final

import pluggy

from . import hookspecs
from .environment import Environment
from .patching.patch import Patch, PatchSet

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


class Plugins:
    """The packages registered under the entry-point group ``verl_mtp_plugin``, the built-in ones first."""

    def __init__(self, found: tuple[EntryPoint, ...] | None = None) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._sources: dict[str, str] = {}
        self._errors: dict[str, str] = {}
        if found is None:
            found = tuple(entry_points(group=hookspecs.PROJECT))
        builtin = {point.name for point in BUILTIN}
        for point in (*BUILTIN, *(p for p in found if p.name not in builtin)):
            self._register(point)

    def _register(self, point: EntryPoint) -> None:
        source = point.value if point.dist is None else f"{point.value} ({point.dist.name} {point.dist.version})"
        self._sources[point.name] = source
        try:
            self._manager.register(point.load(), name=point.name)
        except Exception as error:
            self._fail(point.name, error)

    def _fail(self, name: str, error: Exception) -> None:
        self._errors[name] = f"{type(error).__name__}: {error}"
        logger.warning(
            "verl-mtp-plugin: plugin %r from %s is left out: %s", name, self._sources[name], self._errors[name]
        )

    def _collect(self, hook: str, accept: Callable[[Any], bool], **arguments: Any) -> Iterator[Any]:
        """Items of every healthy plugin. Plugins are asked one by one, so that one that raises harms nobody else."""
        everyone = self._manager.get_plugins()
        for name, plugin in self._manager.list_name_plugin():
            if plugin is None or name in self._errors:
                continue
            caller = self._manager.subset_hook_caller(hook, [other for other in everyone if other is not plugin])
            try:
                items = [item for result in caller(**arguments) for item in result]
                wrong = [item for item in items if not accept(item)]
                if wrong:
                    raise TypeError(
                        f"{hook} returned {wrong[0]!r}; see verl_mtp_plugin.hookspecs for what it must return"
                    )
            except Exception as error:
                self._fail(name, error)
                continue
            yield from items

    def patches(self, environment: Environment) -> list[Patch | PatchSet]:
        """All patches, in the order in which plugins registered."""
        return list(
            self._collect("verl_mtp_patches", lambda i: isinstance(i, Patch | PatchSet), environment=environment)
        )

    def models(self) -> list[ModelFamily]:
        """All model families."""
        from .models.family import ModelFamily

        return list(self._collect("verl_mtp_models", lambda i: isinstance(i, ModelFamily)))

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """Who registered, and who could not."""
        from .patching.report import PluginRecord

        return tuple(PluginRecord(name, source, self._errors.get(name, "")) for name, source in self._sources.items())
