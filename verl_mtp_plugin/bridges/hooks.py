"""The bridges' patches, as data: light to import, since they are armed at ``import verl``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..environment import Environment
from ..hookspecs import hookimpl
from ..patching import Patch, PatchSet, Target, around
from . import built, mbridge_mimo

ENGINE: Final = "verl.workers.engine.megatron.transformer_impl"

PATCHES: Final[tuple[Patch | PatchSet, ...]] = (
    Patch(
        id="bridge.built",
        target=Target(ENGINE, "MegatronEngine._build_megatron_module"),
        reason="where the bridge builds no MTP layers for a model, verl trains on without MTP and says nothing",
        upstream="no release; delete when verl checks what its bridge built",
        build=around(built.build_megatron_module),
    ),
    *mbridge_mimo.PATCHES,
)


@hookimpl
def verl_mtp_patches(environment: Environment) -> Iterable[Patch | PatchSet]:
    """The patches of this room."""
    return PATCHES
