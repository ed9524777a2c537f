"""Patches by which no MTP weight is random, lost or old in silence, as data: light to import."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from ...environment import Environment
from ...patching import Patch, PatchSet, Target, Verdict, applicable, around, unsupported


def _call(module: str, name: str) -> Callable[[Any], Any]:
    """A builder: around the original, the function ``name`` of a module of this package, imported when it is called."""

    def wrapper(original: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f".{module}", __package__), name)(original, *args, **kwargs)

    return around(wrapper)


def knows(owner: str, *methods: str) -> Callable[[Environment, ModuleType], Verdict]:
    """A probe: whether the class ``owner`` has the methods by which its names are asked for."""

    def decide(environment: Environment, module: ModuleType) -> Verdict:
        lacking = [name for name in methods if not hasattr(getattr(module, owner), name)]
        if not lacking:
            return applicable()
        return unsupported(
            found=f"{owner} without {', '.join(lacking)}",
            expected="the methods by which a bridge maps names",
            advice="use a bridge release that the plugin was tested with, and report this one",
        )

    return decide


LANGUAGE_MODULE: Final = "megatron.core.models.common.language_module.language_module"
MBRIDGE: Final = "mbridge.core.bridge"
MODEL_BRIDGE: Final = "megatron.bridge.models.conversion.model_bridge"
AUTO_BRIDGE: Final = "megatron.bridge.models.conversion.auto_bridge"
MANAGER: Final = "verl.utils.checkpoint.megatron_checkpoint_manager"
ENGINE: Final = "verl.workers.engine.megatron.transformer_impl"
#: verl 0.7.1's own workers.
WORKERS: Final = "verl.workers.megatron_workers"

_mbridge: Final = knows(
    "Bridge",
    "_weight_name_mapping_mcore_local_to_global",
    "_weight_name_mapping_mcore_to_hf",
    "_weight_to_hf_format",
)
_model_bridge: Final = knows(
    "MegatronModelBridge", "build_conversion_tasks", "_megatron_global_param_names_all_pp_ranks"
)
_auto_bridge: Final = knows("AutoBridge", "_model_bridge", "get_conversion_tasks")

TIED_HEAD: Final = Patch(
    id="bridge.tied_head",
    target=Target(LANGUAGE_MODULE, "LanguageModule.setup_embeddings_and_output_layer"),
    reason="tied embeddings, MTP and pipeline parallelism: the first checkpoint ends in an AssertionError, mbridge "
    "sends the rollout engine an embedding that is not trained, and fused kernels compute log-probs with it",
    upstream="no release, nor main; delete when megatron-core allocates no output_layer.weight on an MTP stage with "
    "tied embeddings",
    decide=knows("LanguageModule", "shared_embedding_or_output_weight"),
    build=_call("tied_head", "setup_embeddings_and_output_layer"),
)

LOADING: Final = (
    Patch(
        id="bridge.load_mbridge",
        target=Target(MBRIDGE, "Bridge.load_weights"),
        reason="a checkpoint without the MTP head ends in a KeyError for one tensor, and no head can be started anew",
        upstream="no release; delete when mbridge lists what is missing and can leave it out",
        decide=_mbridge,
        build=_call("loading", "load_weights"),
    ),
    Patch(
        id="bridge.load_megatron_bridge",
        target=Target(MODEL_BRIDGE, "MegatronModelBridge.load_weights_hf_to_megatron"),
        reason="MTP tensors that a checkpoint lacks leave the MTP layers at random values, with a warning among many",
        upstream="no release; delete when Megatron-Bridge raises for missing tensors",
        decide=_model_bridge,
        build=_call("loading", "load_weights_hf_to_megatron"),
    ),
)

EXPORT: Final = (
    Patch(
        id="bridge.export_mbridge",
        target=Target(MBRIDGE, "Bridge.export_weights"),
        reason="an MTP tensor that is not exported leaves the rollout engine drafting with old weights, in silence",
        upstream="no release; delete when verl checks what it sends",
        decide=_mbridge,
        build=_call("export", "export_weights"),
    ),
    PatchSet(
        "bridge.export_megatron_bridge",
        (
            Patch(
                id="bridge.export_megatron_bridge.stream",
                target=Target(AUTO_BRIDGE, "AutoBridge.export_hf_weights"),
                reason="an MTP head that the first checkpoint did not have is trained but never sent to the rollout "
                "engine, in silence; with Megatron-Bridge 0.4 the export ends in a ValueError",
                upstream="no release; delete when Megatron-Bridge exports parameters that its source lacks",
                decide=_auto_bridge,
                build=_call("export", "export_hf_weights"),
            ),
            Patch(
                id="bridge.export_megatron_bridge.tasks",
                target=Target(AUTO_BRIDGE, "AutoBridge.get_conversion_tasks"),
                reason="the same in verl >= 0.9, which plans the export once",
                upstream="no release; delete when Megatron-Bridge exports parameters that its source lacks",
                decide=_auto_bridge,
                build=_call("export", "get_conversion_tasks"),
            ),
        ),
    ),
)

SAVING: Final = (
    Patch(
        id="bridge.save_mbridge",
        target=Target(MBRIDGE, "Bridge.save_weights"),
        reason="an MTP head that the first checkpoint did not have is left out of Hugging Face folders; with MTP "
        "disabled the file that holds MTP tensors is not saved at all",
        upstream="no release; delete when mbridge saves what it exports, and that alone",
        decide=_mbridge,
        build=_call("saving", "save_weights"),
    ),
    Patch(
        id="bridge.save_megatron_bridge",
        target=Target(AUTO_BRIDGE, "AutoBridge.save_hf_weights"),
        reason="an MTP head that the first checkpoint did not have is left out of Hugging Face folders, in silence; "
        "with MTP disabled, or with copies as DeepSeek has them, the file that holds MTP tensors is not saved at all",
        upstream="no release; delete when Megatron-Bridge saves what it exports, and that alone",
        decide=_auto_bridge,
        build=_call("saving", "save_hf_weights"),
    ),
)

_REASON: Final = "a checkpoint without the MTP layers ends in a CheckpointException that does not say so"
_UPSTREAM: Final = "no release; delete when verl names what a checkpoint lacks"


def _checkpoint(id: str, module: str, name: str, function: str, *, absent_ok: bool = False) -> Patch:
    build = _call("checkpoint", function)
    return Patch(f"bridge.{id}", Target(module, name), _REASON, _UPSTREAM, build, absent_ok=absent_ok)


CHECKPOINT: Final = (
    PatchSet(
        "bridge.checkpoint",
        (
            _checkpoint("checkpoint.manager", MANAGER, "MegatronCheckpointManager.load_checkpoint", "load_checkpoint"),
            _checkpoint("checkpoint.load", MANAGER, "load_dist_checkpointing", "load_dist_checkpointing"),
        ),
    ),
    _checkpoint("dist_weights", ENGINE, "load_mcore_dist_weights", "load_mcore_dist_weights", absent_ok=True),
    _checkpoint("dist_weights_legacy", WORKERS, "load_mcore_dist_weights", "load_mcore_dist_weights", absent_ok=True),
)

PATCHES: Final[tuple[Patch | PatchSet, ...]] = (TIED_HEAD, *LOADING, *EXPORT, *SAVING, *CHECKPOINT)
