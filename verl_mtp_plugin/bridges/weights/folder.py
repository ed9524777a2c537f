"""What a Hugging Face folder holds: the names that a reader of it finds. Tensors are not read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

INDEX: Final = "model.safetensors.index.json"


def versions(folder: Path) -> dict[str, int]:
    """When each file with tensors was written, in ns, by its name. Empty where there is none, or no folder."""
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")}


def tensor_names(folder: Path, *, before: Mapping[str, int] | None = None) -> frozenset[str]:
    """The names of the tensors that the files have and, if there is an index, that it finds there.

    Args:
        before: what :func:`versions` returned earlier: files that are still the same are left out.
    """
    from safetensors import safe_open

    found: dict[str, str] = {}
    for name, version in versions(folder).items():
        if before is None or before.get(name) != version:
            with safe_open(folder / name, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), name)
    index = folder / INDEX
    if index.exists():
        places = json.loads(index.read_text())["weight_map"]
        found = {name: file for name, file in found.items() if places.get(name) == file}
    return frozenset(found)
