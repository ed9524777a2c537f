"""The mechanism: declarative patches, one engine. It knows nothing of what it is used for."""

from __future__ import annotations

from .change import around
from .engine import PatchEngine
from .needs import Needs, with_needs
from .patch import (
    MISSING,
    Decision,
    Patch,
    PatchSet,
    Target,
    Verdict,
    always,
    applicable,
    not_needed,
    unsupported,
)

__all__ = [
    "MISSING",
    "Decision",
    "Needs",
    "Patch",
    "PatchEngine",
    "PatchSet",
    "Target",
    "Verdict",
    "always",
    "applicable",
    "around",
    "not_needed",
    "unsupported",
    "with_needs",
]
