"""Every check of a layout, by name."""

from __future__ import annotations

from . import gradients, isolation  # noqa: F401  # they register their checks
from .registry import CHECKS, Cell, Check, checks_for

__all__ = ["CHECKS", "Cell", "Check", "checks_for"]
