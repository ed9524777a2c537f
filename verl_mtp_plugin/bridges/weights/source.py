"""The checkpoint that a Megatron-Bridge ``AutoBridge`` was made from, which also decides what it exports and saves.

What that folder has no tensor for is left out of every export and of every folder that is saved, although the model
trains it: an MTP head that was started anew, or came from a Megatron checkpoint. So the missing names are added to what
the source says it has. What is *loaded* from it is asked of the folder itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from ...errors import UnsupportedError

#: On a changed source: the one as it was.
_ON_DISK: Final = "_verl_mtp_on_disk"
#: A static method of sources, by which names are left out of folders.
_IGNORE: Final = "_ignore_source_key_prefixes"


def source_of(pretrained: Any) -> Any:
    """The ``StateSource`` of a checkpoint, or None where there is a config alone, which restricts no export."""
    return getattr(getattr(pretrained, "state", None), "source", None)


def names_on_disk(pretrained: Any) -> frozenset[str]:
    """The names of the checkpoint's tensors. It is about to be loaded, so from here on its source says no more."""
    source = source_of(pretrained)
    on_disk = getattr(source, _ON_DISK, None)
    if on_disk is not None:
        pretrained.state.source = source = on_disk
    return frozenset(() if source is None else source.get_all_keys())


def complete(pretrained: Any, wanted: Iterable[str]) -> None:
    """Let a checkpoint's source have the names ``wanted`` too, in the last of its files.

    Raises:
        UnsupportedError: a source that keeps its names elsewhere than all known releases do.
    """
    source = source_of(pretrained)
    if source is None:
        return
    names = source.get_all_keys()
    added = set(wanted).difference(names)
    if added:
        files = _files(source)
        last = max(files.values(), default="")
        pretrained.state.source = _changed(source, {*names, *added}, {**files, **dict.fromkeys(sorted(added), last)})


@contextmanager
def laid_out(pretrained: Any, *, added: Iterable[str], dropped: Iterable[str]) -> Iterator[None]:
    """Within, a folder is saved with what a checkpoint's source has, with ``added`` and without ``dropped``.

    Raises:
        UnsupportedError: as :func:`complete`.
    """
    source, added, dropped = source_of(pretrained), frozenset(added), frozenset(dropped)
    if source is None or not (added or dropped):
        yield
        return
    names, files = frozenset(source.get_all_keys()), _files(source)
    places = dict.fromkeys(sorted(added - names), max(files.values(), default=""))
    kept = {name: file for name, file in files.items() if name not in dropped}
    changed = _changed(source, set(names - dropped | added), {**kept, **places})
    if hasattr(changed, _IGNORE):
        # With MTP disabled Megatron-Bridge >= 0.5 takes all names of MTP layers away, and with them what it exports.
        setattr(changed, _IGNORE, lambda files, prefixes: dict(files or {}))
    pretrained.state.source = changed
    try:
        yield
    finally:
        pretrained.state.source = source


def _files(source: Any) -> Mapping[str, str]:
    return getattr(source, "key_to_filename_map", None) or {}


def _changed(source: Any, names: set[str], files: Mapping[str, str]) -> Any:
    """A copy of a source that has other names, and the same files."""
    changed = copy.copy(source)
    setattr(changed, _ON_DISK, getattr(source, _ON_DISK, source))
    changed._keys_cache = sorted(names)
    if _files(source):
        changed._key_to_filename_map_cache = dict(files)
    if set(changed.get_all_keys()) != names or (_files(source) and set(changed.key_to_filename_map) != set(files)):
        raise UnsupportedError(
            found=f"a {type(source).__name__} of Megatron-Bridge whose names cannot be changed",
            expected="one that keeps them in _keys_cache and _key_to_filename_map_cache",
            advice="Use a Megatron-Bridge release that the plugin was tested with, or start from a checkpoint that has "
            "all tensors of the MTP layers.",
        )
    return changed
