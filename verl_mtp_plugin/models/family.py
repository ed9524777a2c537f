"""A model family, described as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Models that share an architecture and name their MTP head alike."""

    name: str  # "MiMo"
    architectures: tuple[str, ...]  # HF ``architectures``: ("MiMoForCausalLM",)
    num_layers_keys: tuple[str, ...]  # HF config keys that may hold the number of MTP layers, in order
