"""What the bridges' patches call of megatron-core and the bridges besides their targets: by patch, as data."""

from __future__ import annotations

from typing import Final

from ..patching import Needs

MTP: Final = "megatron.core.transformer.multi_token_prediction"
MODEL_BRIDGE: Final = "megatron.bridge.models.conversion.model_bridge:MegatronModelBridge"
_UNWRAP: Final = Needs("megatron.core.utils:unwrap_model", positional=1)
_ANSWERS: Final = (
    # Where mbridge cannot be asked its support is unknown, and refuses nothing; these two are not asked in vain.
    Needs(f"{MTP}:MultiTokenPredictionLayerSubmodules", attributes=("enorm", "hnorm", "eh_proj")),
    Needs(f"{MTP}:MultiTokenPredictionLayer", attributes=("enorm", "hnorm")),
)
#: Of megatron-core, for the plan of what Megatron-Bridge loads, exports and saves (:mod:`.weights.weight_names`).
_PLAN: Final = (
    _UNWRAP,
    Needs(f"{MODEL_BRIDGE}.build_conversion_tasks", positional=3),
    Needs(f"{MODEL_BRIDGE}._megatron_global_param_names_all_pp_ranks", positional=2),
)
#: For the comparison of the stages' embeddings (:mod:`.weights.copies`).
_COPIES: Final = (
    Needs("megatron.core.parallel_state:get_pipeline_model_parallel_world_size", positional=0),
    Needs("megatron.core.parallel_state:get_tensor_model_parallel_rank", positional=0),
    Needs("megatron.core.parallel_state:get_data_parallel_rank", keywords=("with_context_parallel",)),
)
#: For the names in a distributed checkpoint (:mod:`.weights.resuming`).
_CHECKPOINT: Final = (
    Needs("megatron.core.dist_checkpointing:ShardedTensor", attributes=("key",)),
    Needs("megatron.core.dist_checkpointing:load_tensors_metadata", positional=1),
    Needs("megatron.core.dist_checkpointing.mapping:ShardedTensorFactory", attributes=("key",)),
)

NEEDS: Final[dict[str, tuple[Needs, ...]]] = {
    "bridge.demand": _ANSWERS,
    "bridge.built": (
        *_ANSWERS,
        Needs(
            "megatron.core.models.common.language_module.language_module:LanguageModule",
            attributes=("config",),
        ),
    ),
    "bridge.load_megatron_bridge": _PLAN,
    "bridge.export_mbridge": _COPIES,
    "bridge.export_megatron_bridge": (*_PLAN, *_COPIES),
    "bridge.save_megatron_bridge": (*_PLAN, *_COPIES),
    "bridge.checkpoint": _CHECKPOINT,
    "bridge.dist_weights": (*_CHECKPOINT, _UNWRAP),
    "bridge.dist_weights_legacy": (*_CHECKPOINT, _UNWRAP),
    "bridge.mbridge_mimo.layer_spec": (
        Needs(
            "megatron.core.models.gpt.gpt_layer_specs:get_gpt_decoder_block_spec",
            positional=1,
            keywords=("use_transformer_engine",),
        ),
    ),
    "bridge.megatron_bridge_qwen3_next.names": (Needs(f"{MTP}:MultiTokenPredictionLayer.__init__"),),
}
