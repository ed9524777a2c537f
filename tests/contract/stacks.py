"""Where the releases of ``verl_mtp_plugin/tested.py`` lie. Standard library only: noxfile.py reads it too."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]

if TYPE_CHECKING:
    from verl_mtp_plugin import tested
else:  # by path: a process without the plugin must not import its package
    _spec = importlib.util.spec_from_file_location("tested_releases", ROOT / "verl_mtp_plugin" / "tested.py")
    tested = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(tested)

VERL = tested.VERL
MEGATRON_CORE = tested.MEGATRON_CORE
MBRIDGE = tested.MBRIDGE
MBRIDGE_CORE = tested.MBRIDGE_CORE
MEGATRON_BRIDGE = tested.MEGATRON_BRIDGE
BRIDGE_CORES = tested.BRIDGE_CORES
SGLANG_PINS = tested.SGLANG_PINS
SGLANG_LATER = tested.SGLANG_LATER
SGLANG_SESSIONS = tested.SGLANG_SESSIONS
SGLANG = tested.SGLANG
VLLM_PINS = tested.VLLM_PINS
VLLM = tested.VLLM
#: Releases of verl, megatron-core and Megatron-Bridge that import together; verl 0.8.0 needs Megatron-Bridge >= 0.5.
WITH_MEGATRON_BRIDGE = tuple(
    (verl, BRIDGE_CORES[bridge], bridge)
    for verl, bridge in (("0.7.1", "0.4.2"), ("0.8.0", "0.5.1"), (VERL[-1], MEGATRON_BRIDGE[-1]))
)
#: The transformers that these Megatron-Bridges ask for, which verl's newest releases do not take.
ASKED_TRANSFORMERS = {
    "0.3.1": (("transformers", "4.57.6"), ("huggingface_hub", "0.36.2")),
    "0.4.2": (("transformers", "5.3.0"),),
}
#: Everything that is installed as a layer.
LAYERS = (
    *(("verl", version) for version in VERL),
    *(("megatron-core", version) for version in MEGATRON_CORE),
    *(("mbridge", version) for version in MBRIDGE),
    *(("megatron-bridge", version) for version in MEGATRON_BRIDGE),
    *(("sglang", version) for version in SGLANG),
    *(release for releases in ASKED_TRANSFORMERS.values() for release in releases),
)

#: A directory with one layer per release, ``verl-0.9.1/``, ``megatron-core-0.16.1/`` and so on, each made by
#: ``pip install --no-deps --target`` so that every pair can be put on PYTHONPATH over one common environment.
LAYERS_VARIABLE = "VERL_MTP_LAYERS"
#: The nox session that makes the layers.
LAYERS_SESSION = "layers"


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
    chosen = (("verl", VERL[-1]), ("megatron-core", MBRIDGE_CORE), ("mbridge", MBRIDGE[-1]))
    return os.pathsep.join(str(layer(*release)) for release in chosen)
