"""The pluggy contract: what a package may give to this plugin.

A package registers a module or object with hook implementations under the entry-point group ``verl_mtp_plugin``; the
built-in patch sets use the same door::

    # entry_points.txt
    [verl_mtp_plugin]
    my_lab = my_lab.verl_mtp_hooks

    # my_lab/verl_mtp_hooks.py
    from verl_mtp_plugin.hookspecs import hookimpl

    @hookimpl
    def verl_mtp_patches(environment):
        return [Patch(...)]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import pluggy

if TYPE_CHECKING:
    from .environment import Environment
    from .models.family import ModelFamily
    from .patching.patch import Patch, PatchSet

PROJECT: Final = "verl_mtp_plugin"

hookspec: Final = pluggy.HookspecMarker(PROJECT)
hookimpl: Final = pluggy.HookimplMarker(PROJECT)


@hookspec
def verl_mtp_patches(environment: Environment) -> Iterable[Patch | PatchSet]:  # type: ignore[empty-body]
    """Patches to arm in this process. Called once per activation; must not import torch, verl or megatron."""


@hookspec
def verl_mtp_models() -> Iterable[ModelFamily]:  # type: ignore[empty-body]
    """Model families that carry an MTP head, described as data."""
