"""Which family a Hugging Face config belongs to, how many MTP layers it promises, and how their tensors are named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .family import ModelFamily, parts
from .mtp_names import MtpNames

#: Any model at all, under the names that Hugging Face configs have for the number of MTP layers. For those whose
#: family nobody has described.
_UNKNOWN: Final = ModelFamily("unknown", (), ("num_nextn_predict_layers", "mtp_num_hidden_layers"))


def family_of(hf_config: Any, families: Iterable[ModelFamily] | None = None) -> ModelFamily | None:
    """The family of a config, or None.

    Args:
        hf_config: a Hugging Face config object.
        families: where to look; by default all that this package and others have registered. The last that matches
            wins, so that another package may describe a built-in family anew.
    """
    if families is None:
        from .. import runtime

        families = runtime.models()
    return next((family for family in reversed(list(families)) if family.matches(hf_config)), None)


def promised_layers(hf_config: Any) -> int:
    """The number of MTP layers that a config promises, in its ``text_config`` too; 0 if none."""
    return (family_of(hf_config) or _UNKNOWN).num_layers(hf_config)


def mtp_names_of(hf_config: Any) -> MtpNames:
    """The names of a model's MTP tensors; false where nobody has described its family's."""
    return (family_of(hf_config) or _UNKNOWN).mtp_names(hf_config)


def promise_no_layers(hf_config: Any) -> None:
    """Set every number of MTP layers in a config to 0, under whatever name it stands there."""
    family = family_of(hf_config) or _UNKNOWN
    for part in parts(hf_config):
        for key in {*family.num_layers_keys, *_UNKNOWN.num_layers_keys}:
            if hasattr(part, key):
                setattr(part, key, 0)
