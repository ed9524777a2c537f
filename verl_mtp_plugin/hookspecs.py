"""The pluggy contract: what a package may give to this plugin.

A package registers a module or object with hook implementations under the entry-point group ``verl_mtp_plugin``; the
built-in patch sets use the same door::

    # pyproject.toml
    [project.entry-points.verl_mtp_plugin]
    my_lab = "my_lab.verl_mtp_hooks"

    # my_lab/verl_mtp_hooks.py
    from verl_mtp_plugin.hookspecs import hookimpl
    from verl_mtp_plugin.patching import Patch, Target, applicable

    def decide(environment, module):  # looks at the module; also not_needed(...) or unsupported(...)
        return applicable()

    def build(original):  # returns the replacement
        return original

    @hookimpl
    def verl_mtp_patches(environment):  # one function of this name in a module
        target = Target("my_lab.module", "MyClass.method")
        return [Patch("my_lab.my_patch", target, "the symptom", "when to delete it", build, decide)]

A model class that runs MTP in a method of its own is described as data, and turned into patches the same way::

    from verl_mtp_plugin.models import ModelClass, Seam

    @hookimpl
    def verl_mtp_patches(environment):
        return [
            ModelClass("my_lab.my_gpt", "MyGPT").patches(),  # a _postprocess like GPTModel's
            ModelClass("my_lab.my_hybrid", "MyHybrid", Seam.FORWARD).patches(),  # a forward like HybridModel's
        ]

A subclass of ``GPTModel`` that overrides neither method needs nothing. A class that fits neither seam brings patches of
its own; until then a job that would train MTP on it stops with an ``UnsupportedError``. megatron-core's HybridModel
(MambaModel before 0.18) is registered here in this way.

A training engine of verl's (``EngineRegistry.register``) needs no hook. One whose code never asks for
``model_config.mtp`` is refused where ``mtp.enable_train`` is set; if it trains MTP all the same, its class says so by
an attribute ``trains_mtp = True``.

A model family is described as data too. It says where a Hugging Face config holds the number of MTP layers, how their
tensors are named, and with which toy config the bridges are asked about it by ``verl-mtp models``::

    from verl_mtp_plugin.models import ModelFamily

    @hookimpl
    def verl_mtp_models():
        return [
            ModelFamily(
                "MyModel",
                architectures=("MyModelForCausalLM",),  # of config.json
                num_layers_keys=("num_nextn_predict_layers",),  # the first of them that is set, also in text_config
                model_types=("my_model",),  # by which mbridge chooses
                mtp_prefixes=("model.layers.{layers}.",),  # {layers}: the number of the trunk's layers
                copies=("embed_tokens.weight",),  # of the trunk's tensors, which the checkpoint may hold besides
                since={"megatron-bridge": "0.7.0"},  # for advice in error messages
                # and whatever else the bridge reads
                sample={"architectures": ["MyModelForCausalLM"], "model_type": "my_model", "hidden_size": 32},
            )
        ]

That describes a family; it makes no bridge support it. For a model that a bridge has no class for, register a class
with the bridge (``mbridge.core.register_model``, ``MegatronModelBridge.register_bridge``) in a module that is imported
in every worker, through ``model.external_lib``, say; for one that it converts wrongly, bring a patch. A family of
another package that has the same architecture as a built-in one takes its place.

A package at fault is named, with its entry point and what is wrong, in ``report().plugins``, by ``verl-mtp doctor`` and
in one warning; it is left out, and nobody else notices. That is: one that cannot be imported or exits; a hook that
raises, exits, returns None or something else than a list of what is asked for, is misspelt, or lacks ``@hookimpl``; a
field of a wrong type; an entry point called like one of ours, or like another package's. Ids and targets of patches are
unique: a later patch that takes one is a CONFLICT, and a probe that returns no Verdict, or a builder that returns
nothing that can be called, is FAILED: that patch set alone is left out. In strict mode a job with MTP stops for any of
them.
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
    """Model families that carry an MTP head, described as data. Must not import torch, verl or megatron."""
