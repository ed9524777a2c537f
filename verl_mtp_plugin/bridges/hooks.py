"""The bridges' patches, as data: light to import, since they are armed at ``import verl``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ..environment import Environment
from ..hookspecs import hookimpl
from ..patching import Patch, PatchSet, Target, around, with_needs
from .mends import hybrid, mbridge_deepseek, mbridge_mimo, mbridge_rope, megatron_bridge_qwen3_next
from .needs import NEEDS
from .weights import hooks as weights

ENGINE: Final = "verl.workers.engine.megatron.transformer_impl"


def _build_tf_config(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .engine import build_tf_config

    return build_tf_config(original, *args, **kwargs)


def _build_megatron_module(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .engine import build_megatron_module

    return build_megatron_module(original, *args, **kwargs)


PATCHES: Final[tuple[Patch | PatchSet, ...]] = (
    Patch(
        id="bridge.demand",
        target=Target(ENGINE, "MegatronEngine._build_tf_config"),
        reason="nobody asks whether the bridge can build and convert a model's MTP before a job takes the GPUs",
        upstream="verl #5323 dropped the assertion and asks nothing; delete when verl asks its bridge",
        build=around(_build_tf_config),
    ),
    Patch(
        id="bridge.built",
        target=Target(ENGINE, "MegatronEngine._build_megatron_module"),
        reason="where the bridge builds no MTP layers for a model, or some that nobody asked for, verl trains on and "
        "says nothing",
        upstream="no release; delete when verl checks what its bridge built",
        build=around(_build_megatron_module),
    ),
    *weights.PATCHES,
    *mbridge_rope.PATCHES,
    *mbridge_mimo.PATCHES,
    *mbridge_deepseek.PATCHES,
    *megatron_bridge_qwen3_next.PATCHES,
    *hybrid.PATCHES,
)


@hookimpl
def verl_mtp_patches(environment: Environment) -> Iterable[Patch | PatchSet]:
    """The patches of this room."""
    return with_needs(PATCHES, NEEDS)
