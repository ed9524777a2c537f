"""The entry points of all installed packages in our group; a package whose metadata cannot be read is one of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from importlib.metadata import Distribution, EntryPoint

from .hookspecs import PROJECT


@dataclass(frozen=True)
class Unreadable:
    """A distribution that has entry points in our group, which cannot be read."""

    name: str
    source: str
    error: Exception


def installed() -> list[EntryPoint | Unreadable]:
    """The entry points, by distribution and name: in the same order on every node of a job."""
    found: list[EntryPoint | Unreadable]
    try:
        found = list(metadata.entry_points(group=PROJECT))
    except Exception:  # one malformed entry_points.txt, and nobody's entry points can be read in one go
        found = _one_by_one()
    by_key = {_key(point): point for point in found}  # what one package says twice is said once
    return [by_key[key] for key in sorted(by_key)]


def _key(point: EntryPoint | Unreadable) -> tuple[str, str, str]:
    if isinstance(point, Unreadable):
        return point.source, point.name, ""
    return distribution(point), point.name, point.value


def _one_by_one() -> list[EntryPoint | Unreadable]:
    found: dict[str, list[EntryPoint | Unreadable]] = {}
    for each in metadata.distributions():
        name = _named(each)
        bare = name.rpartition(" ")[0].lower()
        if bare in found:  # shadowed by the same distribution further up the path
            continue
        try:
            found[bare] = [point for point in each.entry_points if point.group == PROJECT]
        except Exception as error:
            found[bare] = [Unreadable(bare, name, error)] if _mentions_us(each) else []
    return [point for points in found.values() for point in points]


def _mentions_us(each: Distribution) -> bool:
    try:
        return f"[{PROJECT}" in (each.read_text("entry_points.txt") or "")
    except Exception:  # bytes that are no UTF-8
        return True


def distribution(point: EntryPoint) -> str:
    """The name and version of who has the entry point, for messages; "" if nobody."""
    return "" if point.dist is None else _named(point.dist)


def _named(each: Distribution) -> str:
    try:
        return f"{each.metadata['Name']} {each.version}"
    except Exception:  # no METADATA in it, say
        return f"a distribution without readable metadata at {getattr(each, '_path', '?')}"
