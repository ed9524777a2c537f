"""Which releases the matrix is made of, and where they lie. Standard library only: noxfile.py reads it too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERL = ("0.7.1", "0.8.0", "0.9.0", "0.9.1")
MEGATRON_CORE = ("0.15.3", "0.16.1", "0.17.1", "0.18.2", "0.19.2")
#: For the tests of bridges and the quickstart.
MBRIDGE = ("0.15.1",)
MEGATRON_BRIDGE = ("0.3.1", "0.4.2", "0.5.1", "0.6.2")
#: The SGLang that each verl pins (0.9.0 as 0.8.0).
SGLANG_PINS = {"0.7.1": "0.5.6", "0.8.0": "0.5.8", "0.9.1": "0.5.12.post1"}
SGLANG = (*SGLANG_PINS.values(), "0.5.21", "0.5.22", "0.5.23")  # from 0.5.21 on with weight-update sessions
#: Everything that is installed as a layer.
LAYERS = (
    *(("verl", version) for version in VERL),
    *(("megatron-core", version) for version in MEGATRON_CORE),
    *(("mbridge", version) for version in MBRIDGE),
    *(("megatron-bridge", version) for version in MEGATRON_BRIDGE),
    *(("sglang", version) for version in SGLANG),
)

#: A directory with one layer per release, ``verl-0.9.1/``, ``megatron-core-0.16.1/`` and so on, each made by
#: ``pip install --no-deps --target`` so that every pair can be put on PYTHONPATH over one common environment.
LAYERS_VARIABLE = "VERL_MTP_LAYERS"
#: The nox session that makes the layers.
LAYERS_SESSION = "layers"
ROOT = Path(__file__).resolve().parents[2]


class MissingLayerError(RuntimeError):
    """A release that the matrix needs is not installed where it should be."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One pair of releases. ``verl`` is ``none`` where verl itself is not there (a GPU machine without it)."""

    verl: str
    megatron_core: str

    def __str__(self) -> str:
        return f"verl-{self.verl}_megatron-core-{self.megatron_core}"


def cells() -> Iterator[Cell]:
    """All pairs, by megatron-core within verl."""
    for verl in VERL:
        for megatron_core in MEGATRON_CORE:
            yield Cell(verl, megatron_core)


def layer(distribution: str, version: str) -> Path:
    """The directory that holds this release.

    Raises:
        MissingLayerError: no such directory, or no ``VERL_MTP_LAYERS``.
    """
    advice = f"Run `nox -s {LAYERS_SESSION}`, which makes the layers, and point {LAYERS_VARIABLE} at them."
    base = os.environ.get(LAYERS_VARIABLE)
    if not base:
        raise MissingLayerError(
            f"{LAYERS_VARIABLE} is not set, so there is no {distribution} {version} to test. {advice}"
        )
    path = Path(base) / f"{distribution}-{version}"
    if not path.is_dir():
        raise MissingLayerError(f"{path} does not exist. {advice}")
    return path


def python_path(cell: Cell) -> str:
    """PYTHONPATH for a cell. The repository itself comes first on ``sys.path`` since cells run from its root."""
    parts = [] if cell.verl == "none" else [layer("verl", cell.verl)]
    parts.append(layer("megatron-core", cell.megatron_core))
    return os.pathsep.join(map(str, parts))


def quickstart_path() -> str:
    """PYTHONPATH for examples/quickstart: the newest verl, and the releases that mbridge from PyPI imports on."""
    chosen = (("verl", VERL[-1]), ("megatron-core", "0.16.1"), ("mbridge", MBRIDGE[-1]))
    return os.pathsep.join(str(layer(*release)) for release in chosen)
