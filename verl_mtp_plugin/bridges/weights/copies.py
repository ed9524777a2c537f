"""The embedding, which several pipeline stages hold: exported once, from the first stage; and all copies alike.

MTP layers look tokens up too, so their stage has a copy of the embedding, and so has the last stage with tied
embeddings. Megatron sums their gradients over the stages, by which they stay equal. If they do not, training itself is
wrong, and no export would be right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from ...errors import AmbiguousWeightsError
from .agreement import everywhere
from .weight_names import chunks

#: How the embedding's name ends in Megatron.
EMBEDDING: Final = "embedding.word_embeddings.weight"
#: mbridge's method that converts one parameter, and the mark of what stands in its place while a stream runs.
_CONVERT, _ONCE = "_weight_to_hf_format", "_verl_mtp_once"


def check_copies(models: Any) -> None:
    """Check that all pipeline stages have the same embedding. A collective, if there are several stages.

    Args:
        models: the model chunks of this rank, their parameters where they can be read.

    Raises:
        AmbiguousWeightsError: they differ, somewhere; on all ranks.
    """
    from megatron.core import parallel_state

    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return
    shard = parallel_state.get_tensor_model_parallel_rank()
    replica = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    place = f"tensor parallel rank {shard} of data parallel rank {replica}"
    found = everywhere(lambda: {f"{place}={fingerprint(weight)}" for weight in _shared(models)})
    places = [entry.rpartition("=")[0] for entry in found]
    different = sorted({place for place in places if places.count(place) > 1})
    if different:
        raise AmbiguousWeightsError(
            found=f"pipeline stages whose copies of the embedding differ, on {different[0]}"
            + (f" and {len(different) - 1} others" if len(different) > 1 else ""),
            expected="the same embedding on the first stage and on those with MTP layers or the tied head: Megatron "
            "sums the gradients of all copies",
            advice="Do not use weights trained like this. Freeze or train all copies alike, and report this with the "
            "versions of megatron-core and the bridge if nothing else changes them.",
        )


def _shared(models: Any) -> Iterator[Any]:
    """This rank's copies of the embedding, the first stage's included."""
    for chunk in chunks(models):
        for module in chunk.modules():
            if not hasattr(module, "shared_embedding_or_output_weight"):
                continue
            tied_head = module.post_process and module.share_embeddings_and_output_weights
            if module.pre_process or getattr(module, "mtp_process", False) or tied_head:
                weight = module.shared_embedding_or_output_weight()
                if weight is not None:  # a wrapper of a model whose decoder is elsewhere
                    yield weight


def fingerprint(weight: Any) -> int:
    """An integer that tells tensors [rows, columns] apart by their bits; where each row stands counts."""
    import torch

    bits = weight.detach().contiguous().view(torch.int16 if weight.element_size() == 2 else torch.int32)
    rows = bits.sum(dim=-1, dtype=torch.int64)
    return int((rows * torch.arange(1, rows.numel() + 1, device=rows.device)).sum())


def converter(bridge: Any) -> Any:
    """mbridge's method that converts one parameter, without what a running or broken stream has put in its place."""
    return _own_converter(bridge) or getattr(type(bridge), _CONVERT).__get__(bridge)


def _own_converter(bridge: Any) -> Any:
    """One that somebody has put on this bridge; not that of a stream which broke off and was never closed."""
    own = vars(bridge).get(_CONVERT)
    return None if hasattr(own, _ONCE) else own


def from_owners(bridge: Any, stream: Iterable[Any]) -> Iterator[Any]:
    """mbridge's stream of pairs of name and tensor without the copies: it exports what each stage has.

    It goes through the stages in order and converts one parameter after the other, so the first embedding is the first
    stage's; the next ones are converted to nothing.
    """
    own, convert, seen = _own_converter(bridge), converter(bridge), set[str]()

    def once(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.endswith(EMBEDDING) and name in seen:
            return [], []
        seen.add(name)
        return convert(name, *args, **kwargs)

    setattr(once, _ONCE, True)
    setattr(bridge, _CONVERT, once)
    try:
        yield from stream
    finally:
        if vars(bridge).get(_CONVERT) is once:
            delattr(bridge, _CONVERT)
            if own is not None:
                setattr(bridge, _CONVERT, own)
