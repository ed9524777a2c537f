"""The answer to: can this bridge build and convert this model's MTP?"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..environment import installed_version
from ..models.family import MBRIDGE, MEGATRON_BRIDGE


@dataclass(frozen=True, slots=True)
class Support:
    """What asking one bridge has shown. ``supported`` is None where it could not be asked."""

    bridge: str  # distribution name: "mbridge", "megatron-bridge"
    supported: bool | None
    detail: str  # what was seen; where not supported, why
    #: Where not supported for a reason that the user can take away: how.
    advice: str = field(default="", kw_only=True)

    @property
    def label(self) -> str:
        """The bridge and its version, for messages."""
        return label(self.bridge)


def label(bridge: str) -> str:
    """A bridge and its installed version, for messages."""
    return f"{bridge} {installed_version(bridge) or '(unknown version)'}"


def bridge_label(*, vanilla: bool) -> str:
    """The bridge that verl's ``vanilla_mbridge`` chooses, and its version."""
    return label(MBRIDGE if vanilla else MEGATRON_BRIDGE)
