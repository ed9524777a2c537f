"""What must be in a checkpoint of verl's before a model with MTP layers resumes from it.

Megatron fails too where a distributed checkpoint lacks tensors, with a list of those that it has; or, over optimizer
states, with the sizes of two buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ...errors import MissingWeightsError
from .agreement import everywhere
from .export import check_export
from .folder import tensor_names
from .missing import ON_PURPOSE
from .weight_names import is_mtp, listed

#: Where verl puts Hugging Face's files in a checkpoint: since 0.9, and before.
_HF_FOLDERS: Final = ("model/huggingface", "huggingface")
_RESUME: Final = "Resume from a checkpoint of a run with MTP. To go on with a new MTP head,"


def check_before_optimizer(manager: Any, checkpoint: Path) -> None:
    """Check the Hugging Face folder of a checkpoint whose optimizer states are loaded too. A collective.

    verl < 0.9 loads these first, and Megatron fails on their sizes if they are those of a model without MTP. A new MTP
    head has no use for them either, so this is an error also where missing weights are allowed.

    Raises:
        MissingWeightsError: the folder lacks MTP tensors.
    """
    loads = manager.should_load_model and manager.should_load_optimizer
    if not loads or manager.use_dist_checkpointing or manager.bridge is None or manager.peft_cls is not None:
        return
    wanted = check_export(manager.bridge, manager.model)

    def absent() -> Iterable[str]:
        present = (tensor_names(checkpoint / folder) for folder in _HF_FOLDERS)
        found = next(filter(None, present), None)
        return () if found is None else wanted - found  # without any file verl says so

    missing = everywhere(absent)
    if missing:
        raise MissingWeightsError(
            found=f"the checkpoint {checkpoint} without tensors of the MTP layers: {listed(missing)}",
            expected="all tensors of the MTP layers that the model has, since the optimizer's states are loaded too",
            advice=f"{_RESUME} leave the optimizer out (checkpoint.load_contents=[model]) and {ON_PURPOSE}.",
        )


def check_dist_checkpoint(sharded: Any, folder: Any) -> None:
    """Check that a checkpoint has the MTP tensors of a sharded state dict. A collective.

    Args:
        sharded: dicts and lists of Megatron's ``ShardedTensor`` and the like.
        folder: the checkpoint.

    Raises:
        MissingWeightsError: it lacks some.
    """

    def absent() -> Iterable[str]:
        wanted = {key for key in _keys(sharded) if is_mtp(key)}
        return wanted - _saved(folder) if wanted else ()

    missing = everywhere(absent)
    if missing:
        raise MissingWeightsError(
            found=f"the distributed checkpoint {folder} without tensors of the MTP layers: {listed(missing)}",
            expected="all tensors of the MTP layers that the model has",
            advice=f"{_RESUME} do not resume: start from that run's Hugging Face folder (checkpoint.save_contents has "
            f"hf_model) and {ON_PURPOSE}.",
        )


def _keys(sharded: Any) -> Iterator[str]:
    """The names of the tensors in a state dict of any nesting."""
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    if isinstance(sharded, dict):
        sharded = list(sharded.values())
    if isinstance(sharded, (list, tuple)):
        for value in sharded:
            yield from _keys(value)
    elif isinstance(sharded, (ShardedTensor, ShardedTensorFactory)):
        yield sharded.key


def _saved(folder: Any) -> set[str]:
    from megatron.core import dist_checkpointing

    # What a factory makes may be saved by shards: "key/shard_0_2".
    return {key.partition("/shard")[0] for key in dist_checkpointing.load_tensors_metadata(str(folder))}
