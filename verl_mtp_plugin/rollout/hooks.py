"""The patches of this room and of those in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..environment import Environment
from ..hookspecs import hookimpl
from ..patching import Patch, PatchSet, with_needs
from . import acceptance_hooks, manager, ranks, sync_metrics
from .needs import NEEDS
from .sglang import hooks as sglang
from .vllm import hooks as vllm

PATCHES: Final[tuple[Patch | PatchSet, ...]] = (
    *manager.PATCHES,
    *sync_metrics.PATCHES,
    *ranks.PATCHES,
    *acceptance_hooks.PATCHES,
    *sglang.PATCHES,
    *vllm.PATCHES,
)


@hookimpl
def verl_mtp_patches(environment: Environment) -> Iterable[Patch | PatchSet]:
    """The patches of this room."""
    return with_needs(PATCHES, NEEDS)
