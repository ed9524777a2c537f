"""What is installed, read from metadata or a checkout's files: nothing is imported to answer."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Final

from .imported import checkout, version_in

#: The distributions whose versions decide whether MTP works, in the order a user would name them.
DISTRIBUTIONS: Final = (
    "verl",
    "megatron-core",
    "mbridge",
    "megatron-bridge",
    "transformer-engine",
    "sglang",
    "vllm",
    "torch",
    "ray",
    "transformers",
)


@cache
def installed_version(distribution: str) -> str | None:
    """The version of ``distribution``, or None when it is not there; of a checkout, if that is what is imported."""
    folder = checkout(distribution)
    return (version_in(folder) if folder else None) or metadata_version(distribution)


def metadata_version(distribution: str) -> str | None:
    """The version of the distribution that was installed, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Environment:
    """The installed stack, handed to every probe.

    Versions label results as tested or untested; decisions come from probing the code, never from comparing versions.
    """

    python: str = field(default_factory=platform.python_version)
    distributions: tuple[str, ...] = DISTRIBUTIONS

    def version(self, distribution: str) -> str | None:
        """Installed version of ``distribution``, None when absent."""
        return installed_version(distribution)

    @property
    def versions(self) -> dict[str, str | None]:
        """Every distribution of interest with its version, None when absent."""
        return {name: self.version(name) for name in self.distributions}

    def label(self, distribution: str) -> str:
        """``"megatron-core 0.18.2"``, or ``"megatron-core (not installed)"``: for messages."""
        return f"{distribution} {self.version(distribution) or '(not installed)'}"
