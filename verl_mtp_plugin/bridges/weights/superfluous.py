"""Tensors in a checkpoint that a model made from it does not export, and those that it exports although nobody would
think so.

Both bridges lay out a folder that they save as the one they loaded, file by file, and do not write a file of which one
tensor never comes. With MTP disabled the whole file with the MTP layers is lost, and what else is in it; with MTP the
same goes for what checkpoints of DeepSeek's kind keep a second time. So these are not to be waited for. But some
bridges do export copies, with MTP disabled as well: those belong into the folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ...models.family import ModelFamily, parts
from ...models.lookup import family_of
from .agreement import everywhere
from .copies import converter
from .weight_names import chunks, has_mtp, is_mbridge

#: What the names of all parameters in a layer have, Megatron's and Hugging Face's.
_IN_LAYERS: Final = ".layers."
#: How a checkpoint names its head: with tied embeddings a copy of the embedding.
_HEAD: Final = "lm_head.weight"


def superfluous(hf_config: Any, names: Iterable[str], *, with_mtp: bool) -> frozenset[str]:
    """Those of a checkpoint's ``names`` that need not be exported, since no parameter of the model is made of them.

    Args:
        hf_config: the Hugging Face config of the checkpoint.
        with_mtp: whether the model was built with its MTP layers.
    """
    family = family_of(hf_config)
    names = frozenset(names)
    tied = _tied_heads(hf_config, names) if with_mtp else frozenset()  # without MTP it is upstream's business
    if family is None or (with_mtp and not family.copies):
        return tied
    endings = family.copies if with_mtp else ("",)
    return tied.union(name for name in family.mtp_names(hf_config).among(names) if name.endswith(endings))


def _tied_heads(hf_config: Any, names: frozenset[str]) -> frozenset[str]:
    tied = any(getattr(part, "tie_word_embeddings", False) for part in parts(hf_config))
    return frozenset(name for name in names if tied and name.endswith(_HEAD) and _IN_LAYERS not in name)


def changes(bridge: Any, models: Any, hf_config: Any, names: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """How a folder that is saved differs from the checkpoint that was loaded, MTP parameters aside. A collective.

    Args:
        bridge: mbridge's, or Megatron-Bridge's ``AutoBridge``.
        models: the model chunks of this rank.
        hf_config: the Hugging Face config of the checkpoint.
        names: the checkpoint's tensors.

    Returns:
        What is not exported and not to be waited for, and copies that are exported.
    """
    names, family = frozenset(names), family_of(hf_config)
    unneeded = superfluous(hf_config, names, with_mtp=has_mtp(models))
    if not unneeded and (family is None or not family.copies):
        return frozenset(), frozenset()
    exported = exported_beside_layers(bridge, models)
    return unneeded - exported, _copies(family, hf_config, exported)


def _copies(family: ModelFamily | None, hf_config: Any, exported: frozenset[str]) -> frozenset[str]:
    return frozenset() if family is None else frozenset(family.mtp_names(hf_config).among(exported))


def exported_beside_layers(bridge: Any, models: Any) -> frozenset[str]:
    """Every Hugging Face name that a bridge makes of the parameters outside of layers: embedding, last norm, head.

    Copies in MTP layers are made of these, by code of each model's bridge. So it is asked by having them converted, of
    Megatron-Bridge with the tensors themselves: two or three are gathered, and none is kept. A collective.
    """
    if is_mbridge(bridge):
        return everywhere(lambda: _converted_by_mbridge(bridge, models))
    tasks = bridge.get_conversion_tasks(models)
    beside = [task for task in tasks if task is not None and _IN_LAYERS not in f".{task.global_param_name}"]
    stream = bridge.export_hf_weights(models, show_progress=False, conversion_tasks=beside)
    return frozenset(name for name, _ in stream)


def _converted_by_mbridge(bridge: Any, models: Any) -> Iterable[str]:
    """mbridge's names depend on Megatron's alone; so a tensor without columns does."""
    import torch

    rows = bridge.padded_vocab_size or 1
    for model in chunks(models):
        for name in bridge._weight_name_mapping_mcore_local_to_global(model).values():
            if _IN_LAYERS not in f".{name}":
                yield from converter(bridge)(name, torch.empty(rows, 0))[0]
