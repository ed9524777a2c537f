"""A Hugging Face folder that is saved has every MTP tensor.

Both bridges lay out the folder as the one they loaded, and leave out what that one did not have: an MTP head that was
started anew is trained and, with nothing but a warning (mbridge) or a report of success (Megatron-Bridge), not saved.
Nor do they write a file of which one tensor does not come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import MissingWeightsError
from .agreement import everywhere, rank, together
from .copies import check_copies
from .export import check_export
from .folder import tensor_names, versions
from .source import laid_out, source_of
from .superfluous import changes
from .weight_names import has_mtp, is_mbridge, listed, name_of


def save_weights(original: Any, bridge: Any, models: Any, weights_path: Any, *args: Any, **kwargs: Any) -> Any:
    """mbridge's ``Bridge.save_weights``; afterwards the folder is looked at.

    Raises:
        MissingWeightsError: MTP tensors are not in the folder.
    """
    io, wanted = bridge.safetensor_io, check_export(bridge, models)
    names = frozenset(getattr(io, "index", None) or ())
    dropped, copies = changes(bridge, models, bridge.hf_config, names)

    def save() -> Any:
        with _indexed(io, added=(wanted | copies) - names, dropped=dropped):
            return original(bridge, models, weights_path, *args, **kwargs)

    return _completely(save, wanted, bridge, Path(weights_path))


def save_hf_weights(original: Any, bridge: Any, model: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
    """Megatron-Bridge's ``AutoBridge.save_hf_weights``, of a completed source; afterwards the folder is looked at.

    Raises:
        AmbiguousWeightsError: pipeline stages have different copies of the embedding.
        MissingWeightsError: MTP tensors are not in the folder.
    """
    if has_mtp(model):
        check_copies(model)
    pretrained, wanted = bridge.hf_pretrained, check_export(bridge, model)
    source = source_of(pretrained)
    names = () if source is None else source.get_all_keys()
    dropped, copies = changes(bridge, model, getattr(pretrained, "config", pretrained), names)

    def save() -> Any:
        with laid_out(pretrained, added=copies, dropped=dropped):
            return original(bridge, model, path, *args, **kwargs)

    return _completely(save, wanted, bridge, Path(path))


def _completely(save: Callable[[], Any], wanted: frozenset[str], bridge: Any, folder: Path) -> Any:
    """Let the first rank, which may hold no MTP layer, save to ``folder``. A collective, if there are MTP layers."""
    if not wanted:
        return save()
    before = versions(folder)
    result = together(save)
    absent = everywhere(lambda: () if rank() else wanted - tensor_names(folder, before=before))
    if absent:
        raise MissingWeightsError(
            found=f"{folder}, saved by {name_of(bridge)}, without tensors of the MTP layers: {listed(absent)}",
            expected="all of them: what starts from this folder would have no MTP head",
            advice="Do not use this folder. Report this with the model and the bridge's version."
            + ("" if is_mbridge(bridge) else " With verl >= 0.8 checkpoint.strict=False saves what there is."),
        )
    return result


@contextmanager
def _indexed(io: Any, *, added: frozenset[str], dropped: frozenset[str]) -> Iterator[None]:
    """Within, mbridge's ``SafeTensorIO`` has other tensors in the folder it loaded; new ones in the last file."""
    index = getattr(io, "index", None)
    if not index or not (added or dropped):  # without an index everything goes to one file
        yield
        return
    whole = io.origin_index
    kept = {name: file for name, file in index.items() if name not in dropped}
    io.index = {**kept, **dict.fromkeys(sorted(added), max(index.values()))}
    io.origin_index = {**whole, "weight_map": io.index}
    try:
        yield
    finally:
        io.index, io.origin_index = index, whole
