"""Which models carry an MTP head, and which classes of Megatron run one, described as data."""

from __future__ import annotations

from .family import ModelFamily
from .model_class import ModelClass, Seam

__all__ = ["ModelClass", "ModelFamily", "Seam"]
