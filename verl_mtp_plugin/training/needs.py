"""What the training patches call of megatron-core and verl besides their targets: by patch, as data.

A line here says how our code uses a name; what it is used for stands in the module of ours that imports it. A test
reads those imports and misses whatever is not listed.
"""

from __future__ import annotations

from typing import Any, Final

from ..patching import Needs

MTP: Final = "megatron.core.transformer.multi_token_prediction"
GPT: Final = "megatron.core.models.gpt.gpt_model:GPTModel"
CONFIG: Final = "megatron.core.transformer.transformer_config:TransformerConfig"
PARALLEL: Final = "megatron.core.parallel_state"
OPTIMIZER: Final = "megatron.core.optimizer.optimizer"
ENGINE: Final = "verl.workers.engine.megatron.transformer_impl:MegatronEngine"
LM_ENGINE: Final = "verl.workers.engine.megatron.transformer_impl:MegatronEngineWithLMHead"
ACTOR: Final = "verl.workers.actor.megatron_actor:MegatronPPOActor"


def _rolls(function: Any) -> str:
    from .roll import problem  # imports torch, which megatron-core has

    return problem(function)


#: Of a model, in every class that is served (:mod:`.mtp_block`, :mod:`.mtp_loss`).
MODEL: Final = (
    Needs(f"{MTP}:roll_tensor", check=_rolls),
    Needs(f"{MTP}:MTPLossAutoScaler.apply"),
    Needs(f"{MTP}:MTPLossAutoScaler.forward", positional=3),
    Needs(
        f"{MTP}:MTPLossLoggingHelper.save_metrics_to_tracker",
        positional=5,
        keywords=("avg_group",),
        otherwise=Needs(f"{MTP}:MTPLossLoggingHelper.save_loss_to_tracker", positional=3, keywords=("avg_group",)),
    ),
    Needs(f"{MTP}:MultiTokenPredictionBlock", attributes=("layers",)),
    Needs(
        f"{MTP}:MultiTokenPredictionBlock.forward",
        positional=1,
        keywords=("input_ids", "position_ids", "hidden_states", "attention_mask", "embedding"),
    ),
    Needs(f"{PARALLEL}:get_tensor_model_parallel_group", positional=0),
    Needs(f"{PARALLEL}:get_data_parallel_group", keywords=("with_context_parallel",)),
    Needs("megatron.core.tensor_parallel:gather_from_sequence_parallel_region", positional=1, keywords=("group",)),
    Needs(
        CONFIG,
        attributes=(
            "mtp_num_layers",
            "mtp_loss_scaling_factor",
            "calculate_per_token_loss",
            "sequence_parallel",
            "grad_scale_func",
        ),
    ),
)
_ATTRIBUTES: Final = (
    "config", "decoder", "embedding", "mtp", "mtp_process", "output_layer", "post_process",
    "share_embeddings_and_output_weights", "training",
)  # fmt: skip
#: Nemotron-H and its like, in :mod:`.model_classes`.
_HYBRID: Final = tuple(
    f"megatron.core.models.{module}:{name}"
    for module, name in (("hybrid.hybrid_model", "HybridModel"), ("mamba.mamba_model", "MambaModel"))
)
#: What :mod:`.step.engine` takes of Megatron.
_STEP: Final = (
    Needs(f"{PARALLEL}:get_data_parallel_group", keywords=("with_context_parallel",)),
    Needs(f"{PARALLEL}:get_data_parallel_world_size", keywords=("with_context_parallel",)),
    Needs(f"{PARALLEL}:is_pipeline_last_stage", keywords=("ignore_virtual",)),
    Needs("verl.utils.device:get_device_id", positional=0),
    Needs(GPT),
)
_OPTIMIZER_METHODS: Final = ("prepare_grads", "step_with_ready_grads", "get_grad_norm", "get_parameters")

NEEDS: Final[dict[str, tuple[Needs, ...]]] = {
    "training.postprocess.gpt_model": (
        *MODEL,
        Needs(GPT, attributes=_ATTRIBUTES),
        Needs(f"{GPT}.shared_embedding_or_output_weight", positional=1),
        Needs(f"{GPT}._scale_logits", positional=2, optional=True),
    ),
    "training.packed_roll": (
        Needs("megatron.core.packed_seq_params:PackedSeqParams", attributes=("cu_seqlens_q",)),
        Needs(f"{MTP}:roll_tensor"),
    ),
    "training.model_classes.find": (Needs(GPT),),
    "training.model_classes.detach_encoder": (Needs(GPT),),
    "training.engine_step.forward_backward_batch": (
        *_STEP,
        Needs(ENGINE, attributes=("model_config", "module", "tf_config", "is_value_model")),
        Needs(f"{ENGINE}.is_mp_src_rank_with_outputs", positional=1),
        Needs(f"{ENGINE}.get_data_parallel_group", positional=1),
        Needs(f"{ENGINE}._routed_num_tokens", positional=2, optional=True),
    ),
    "training.engine_step.train_batch": (
        Needs(ENGINE, attributes=("model_config", "optimizer", "tf_config", "is_value_model")),
        Needs(f"{ENGINE}.is_mp_src_rank_with_outputs", positional=1),
    ),
    "training.worker_metrics": (Needs("verl.utils.tensordict_utils:get", positional=2),),
    "training.legacy_actor.forward_backward_batch": (
        *_STEP,
        Needs(f"{PARALLEL}:get_data_parallel_group", positional=0),
        Needs(ACTOR, attributes=("mtp_config", "actor_module", "tf_config")),
    ),
    "training.legacy_actor.update_policy": (Needs(ACTOR, attributes=("mtp_config", "actor_optimizer")),),
    **{
        f"training.grad_clip.{name}": (
            *(Needs(f"{OPTIMIZER}:{owner}.{method}", positional=1) for method in _OPTIMIZER_METHODS),
            Needs(f"{OPTIMIZER}:{owner}", attributes=("config",)),
            Needs(
                "megatron.core.optimizer.clip_grads:clip_grad_by_total_norm_fp32",
                positional=3,
                keywords=("use_decoupled_grad",),
            ),
        )
        for name, owner in (
            ("chained", "ChainedOptimizer"),
            ("mixed_precision", "MixedPrecisionOptimizer"),
            ("fp32", "FP32Optimizer"),
        )
    },
    "training.fused.engine": (
        Needs(ENGINE, attributes=("engine_config", "model_config", "is_value_model", "module")),
        Needs("verl.utils.megatron_utils:unwrap_model", positional=1),
        Needs("verl.models.mcore.model_forward_fused"),
    ),
    "training.fused.forward": (
        Needs("verl.models.mcore.model_forward_fused:fused_output_processor", optional=True),  # verl >= 0.9
        Needs(
            "verl.models.mcore.model_forward_fused:FusedOutputProcessorContext",
            keywords=("temperature",),
            optional=True,
        ),
        Needs("verl.utils.megatron_utils:unwrap_model", positional=1),
    ),
    "verl_fixes.loss_mask": (Needs(LM_ENGINE, attributes=("model_config",)),),
    "verl_fixes.forward_only": (Needs(ENGINE, attributes=("model_config",)),),
    **{f"model_class.{name.replace(':', '.')}.forward": (Needs(name, attributes=_ATTRIBUTES),) for name in _HYBRID},
}
