"""Which copy of a package ``import`` would find here, and the version that this copy says of itself.

A checkout on the path, or one installed in editable mode, has whatever version its files say, while the metadata tell
what was installed some time ago, or beside it. Nothing is imported to answer.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

#: What a distribution's code is imported as, where that is not its name.
PACKAGES: Final = {
    "megatron-core": "megatron.core",
    "megatron-bridge": "megatron.bridge",
    "transformer-engine": "transformer_engine",
}
#: Files of a package that may say its version, in the order in which they are asked.
_FILES: Final = ("package_info.py", "version.py", "_version.py", "__init__.py")
_ASSIGNED: Final = re.compile(r"""^(?:__version__|version)\s*=\s*(?:version\s*=\s*)?["']([^"']+)["']""", re.M)
_PART: Final = re.compile(r"""^(MAJOR|MINOR|PATCH|PRE_RELEASE)\s*=\s*["']?([\w.]*)["']?\s*$""", re.M)


def checkout(distribution: str) -> Path | None:
    """The folder of the package that would be imported, if no installed distribution put it there; None otherwise."""
    found = _file(PACKAGES.get(distribution, distribution))
    if found is None or _installed_file(distribution, found):
        return None
    return found.parent


def version_in(folder: Path) -> str | None:
    """The version that the files of a package in a checkout say; None if none does."""
    text = _read(folder / "version" / "version").strip()  # verl's way
    if text:
        return text
    for name in _FILES:
        text = _read(folder / name)
        parts = dict(_PART.findall(text))
        if {"MAJOR", "MINOR", "PATCH"} <= parts.keys():  # Megatron's way
            return f"{parts['MAJOR']}.{parts['MINOR']}.{parts['PATCH']}{parts.get('PRE_RELEASE', '')}"
        assigned = _ASSIGNED.search(text)
        if assigned:
            return assigned[1]
    for parent in (folder.parent, folder.parent.parent):
        assigned = _ASSIGNED.search(_read(parent / "pyproject.toml"))
        if assigned:
            return assigned[1]
    return None


def _file(package: str) -> Path | None:
    """The ``__init__.py`` of a package that is imported, or would be."""
    loaded = getattr(sys.modules.get(package), "__file__", None)
    if loaded:
        return Path(loaded)
    top, *rest = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for number, _ in enumerate(rest, 2):
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(".".join(package.split(".")[:number]), list(spec.submodule_search_locations))
    except Exception:  # a finder of somebody else's, or a module without a spec
        return None
    # A folder of that name without __init__.py, such as the one that a checkout lies in, is not imported.
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _installed_file(distribution: str, file: Path) -> bool:
    """Whether a file is the one that the installed distribution (no ``.egg-info`` of a checkout) brought."""
    try:
        found = metadata.distribution(distribution)
        if not str(getattr(found, "_path", "")).endswith(".dist-info"):
            return False
        own = Path(str(found.locate_file("/".join((*PACKAGES.get(distribution, distribution).split("."), file.name)))))
        return own.samefile(file)
    except (metadata.PackageNotFoundError, OSError):
        return False


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
