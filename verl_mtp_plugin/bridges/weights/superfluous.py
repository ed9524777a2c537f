"""Tensors of MTP layers in a checkpoint that a model made from it does not export.

Both bridges lay out a folder that they save as the one they loaded, file by file, and do not write a file of which one
tensor never comes. With MTP disabled the whole file with the MTP layers is lost, and what else is in it; with MTP the
same goes for what checkpoints of DeepSeek's kind keep a second time. So these are not to be waited for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...models.lookup import family_of


def superfluous(hf_config: Any, names: Iterable[str], *, with_mtp: bool) -> frozenset[str]:
    """Those of a checkpoint's ``names`` that are not exported.

    Args:
        hf_config: the Hugging Face config of the checkpoint.
        with_mtp: whether the model was built with its MTP layers.
    """
    family = family_of(hf_config)
    if family is None or (with_mtp and not family.copies):
        return frozenset()
    endings = family.copies if with_mtp else ("",)
    return frozenset(name for name in family.mtp_names(hf_config).among(names) if name.endswith(endings))
