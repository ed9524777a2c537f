"""Build hook: reads the entry points from entry_points.txt, the one place where they are written."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class EntryPointsHook(MetadataHookInterface):
    """Fills the dynamic ``entry-points`` and ``scripts`` of pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        parser = configparser.ConfigParser(delimiters=("=",))
        parser.optionxform = str  # type: ignore[assignment, method-assign]  # entry-point names keep their case
        parser.read_string(Path(self.root, "entry_points.txt").read_text(encoding="utf-8"))
        groups = {group: dict(parser[group]) for group in parser.sections()}
        metadata["scripts"] = groups.pop("console_scripts")
        metadata["entry-points"] = groups
