"""The checks of the contract.

Each takes a :class:`~tests.contract.world.World`, builds its own models, raises where the contract is broken and
returns a short detail where it is kept.
"""

from __future__ import annotations

from . import detach, labels_none, lifecycle, not_asked, objectives, special, steps, training
from .registry import CHECKS, Check, Kind

__all__ = ["CHECKS", "Check", "Kind", "checks_for"]

_ORDER = [
    module.__name__ for module in (labels_none, training, detach, special, not_asked, lifecycle, objectives, steps)
]
CHECKS.sort(key=lambda check: _ORDER.index(check.run.__module__))  # stable: by module, then as written


def checks_for(*, plugin: bool) -> list[Check]:
    """What a cell runs."""
    return [check for check in CHECKS if plugin or check.kind is not Kind.PLUGIN]
