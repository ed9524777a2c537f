"""The families' sample configs, in the variants of :class:`.cells.Case`."""

from __future__ import annotations

from typing import Any, Final

from verl_mtp_plugin.models.families import FAMILIES

from .cells import Case

#: DeepSeek-V3's own, as its config.json has it.
YARN: Final[dict[str, Any]] = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
    "beta_slow": 1, "beta_fast": 32, "mscale_all_dim": 1.0, "mscale": 1.0,
}  # fmt: skip
_VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "tied": {"tie_word_embeddings": True},
    "vocab97": {"vocab_size": 97},
    "layers61": {"num_hidden_layers": 61, "first_k_dense_replace": 60},
    "yarn": {"rope_scaling": YARN},
}


def config(case: Case) -> dict[str, Any]:
    """A complete HF config."""
    sample = next(family.sample for family in FAMILIES if family.name == case.family)
    made = dict(sample or {})
    for option in case.options & _VARIANTS.keys():
        made |= _VARIANTS[option]
    return made
