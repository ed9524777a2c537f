"""Which models carry an MTP head, described as data."""

from __future__ import annotations

from .family import ModelFamily

__all__ = ["ModelFamily"]
