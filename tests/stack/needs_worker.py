"""Takes away, renames or changes each thing that a patch lists, in the real modules, and notes what the engine says.

``python -m tests.stack.needs_worker [sglang] [megatron-bridge]`` with the releases on PYTHONPATH. Prints how often each
patch was tried, and where it was still applied or did not say what is missing.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

from verl_mtp_plugin.environment import Environment
from verl_mtp_plugin.patching import Decision, Needs, Patch, PatchEngine, PatchSet
from verl_mtp_plugin.patching.patch import as_patch_set
from verl_mtp_plugin.plugins import Plugins
from verl_mtp_plugin.testing import cuda, megatron_bridge, stub_modules, transformer_engine


def loaded(name: str) -> ModuleType | None:
    """The module, if these releases have it and it can be imported here."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit):  # no bridge, no GPU, another verl
        return None


def decide(patch_set: PatchSet) -> dict[str, tuple[Decision, str]]:
    """What a fresh engine makes of the set; everything is as before afterwards."""
    engine = PatchEngine()
    engine.arm([patch_set])
    found = {record.id: (record.decision, record.detail) for record in engine.records()}
    engine.revert_all()
    return found


def holders_of(where: str) -> list[tuple[Any, str]]:
    """What holds the last part of ``module:dotted.name``: a module, or a class and those of its bases that do."""
    module, _, qualname = where.partition(":")
    *path, name = qualname.split(".")
    owner: Any = sys.modules[module]
    for step in path:
        owner = getattr(owner, step, None)
    return [(place, name) for place in getattr(owner, "__mro__", (owner,)) if place and name in vars(place)]


@contextlib.contextmanager
def changed(where: str, value: Any) -> Iterator[None]:
    """Within it the name has another value."""
    owner, name = holders_of(where)[0]
    before = vars(owner)[name]
    setattr(owner, name, staticmethod(value) if isinstance(owner, type) else value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def removed(where: str) -> Iterator[None]:
    """Within it the name does not exist."""
    places = [(owner, name, vars(owner)[name]) for owner, name in holders_of(where)]
    for owner, name, _ in places:
        delattr(owner, name)
    try:
        yield
    finally:
        for owner, name, before in places:
            setattr(owner, name, before)


def taking(positional: int, keywords: tuple[str, ...]) -> Callable[..., Any]:
    """A function of this many parameters without names that can be given, and these."""

    def function(*args: Any, **kwargs: Any) -> Any:
        return None

    kinds = inspect.Parameter
    parameters = [kinds(f"p{i}", kinds.POSITIONAL_ONLY) for i in range(positional)]
    parameters += [kinds(name, kinds.KEYWORD_ONLY) for name in keywords]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def not_rolling(tensor: Any, shifts: int = -1, dims: int = -1, cp_group: Any = None) -> Any:
    """Takes and returns what roll_tensor does, and rolls nothing."""
    return tensor, tensor.sum()


def changes(need: Needs) -> Iterator[tuple[str, contextlib.AbstractContextManager[None]]]:
    """Every way in which this could be otherwise; each context makes it so."""
    places = holders_of(need.where) if ":" in need.where else []
    if places:
        torchs = any(owner.__module__.startswith("torch") for owner, _ in places if isinstance(owner, type))
        if not need.optional and need.otherwise is None and not torchs:  # what torch has as well is never gone
            yield "removed", removed(need.where)
        positional = need.positional or 0
        if need.positional is not None or need.keywords:
            yield "one argument more", changed(need.where, taking(positional + 1, need.keywords))
        if positional:
            yield "one argument less", changed(need.where, taking(positional - 1, need.keywords))
        for keyword in need.keywords:
            others = tuple(name for name in need.keywords if name != keyword)
            yield f"{keyword} renamed", changed(need.where, taking(positional, (*others, f"{keyword}_")))
        if need.check:
            yield "another result", changed(need.where, not_rolling)


def with_need(patch_set: PatchSet, patch: Patch, old: Needs, new: Needs) -> PatchSet:
    needs = tuple(new if need is old else need for need in patch.needs)
    return PatchSet(patch_set.id, tuple(replace(p, needs=needs) if p is patch else p for p in patch_set.patches))


def tried(patch_set: PatchSet, patch: Patch, need: Needs) -> Iterator[tuple[str, Decision, str]]:
    for what, context in changes(need):
        with context:
            yield what, *decide(patch_set)[patch.id]
    for name in need.attributes:  # the same as a rename by upstream
        renamed = replace(need, attributes=tuple(f"{n}_renamed" if n == name else n for n in need.attributes))
        yield f"{name} renamed", *decide(with_need(patch_set, patch, need, renamed))[patch.id]


def main() -> None:
    os.environ["VERL_MTP_PLUGIN"] = "off"  # each set is applied by an engine of its own, and to upstream as it is
    cuda.install()
    if "sglang" in sys.argv:
        stub_modules.install()
    if "megatron-bridge" in sys.argv:
        cuda.install_megatron()
        transformer_engine.install()
        megatron_bridge.install()
    loaded("verl")
    sets = [as_patch_set(item) for item in Plugins(()).patches(Environment())]
    for patch_set in sets:
        for name in sorted(patch_set.modules):
            if loaded(name) is None:
                break
    for patch_set in sets:  # what a patch calls besides, where its target is there
        if patch_set.modules <= sys.modules.keys():
            for name in sorted(patch_set.needed_modules):
                loaded(name)
    counts: dict[str, int] = collections.Counter()
    wrong: list[str] = []
    for patch_set in sets:
        before = decide(patch_set)
        for patch in patch_set.patches:
            for need in patch.needs if before[patch.id][0] is Decision.APPLIED else ():
                if need.module not in sys.modules:
                    continue
                for what, decision, detail in tried(patch_set, patch, need):
                    counts[patch.id] += 1
                    last = need.where.rpartition(":")[2].split(".")[-1]
                    named = last in detail or "of the same set" in detail or decision is Decision.FAILED
                    if decision is Decision.APPLIED or not named:
                        wrong.append(f"{patch.id}: {need.where}: {what}: {decision} {detail}")
        if decide(patch_set) != before:
            wrong.append(f"{patch_set.id} is not as before")
    print(json.dumps({"counts": counts, "wrong": wrong}))
    cuda.end_process()


if __name__ == "__main__":
    main()
