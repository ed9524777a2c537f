"""Which models carry an MTP head, and which classes of Megatron run one, described as data."""

from __future__ import annotations

from .family import BRIDGES, MBRIDGE, MEGATRON_BRIDGE, ModelFamily
from .model_class import ModelClass, Seam

__all__ = ["BRIDGES", "MBRIDGE", "MEGATRON_BRIDGE", "ModelClass", "ModelFamily", "Seam"]
