"""The patches of this package, as data: light to import, since they are armed at ``import verl``."""

from __future__ import annotations

from typing import Any, Final

from ..patching import Patch, PatchSet, Target, around
from . import forward_only, legacy_workers, mtp_config, probes, value_head

ENGINE: Final = "verl.workers.engine.megatron.transformer_impl"
#: verl 0.7.1's own workers; not there in later releases, so never imported.
WORKERS: Final = "verl.workers.megatron_workers"


def _pack(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .packing import pack  # imports torch

    return pack(original, *args, **kwargs)


def _prepare_model_inputs(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .loss_mask import prepare_model_inputs  # imports torch

    return prepare_model_inputs(original, *args, **kwargs)


PATCHES: Final[tuple[Patch | PatchSet, ...]] = (
    Patch(
        id="verl_fixes.mtp_config",
        target=Target(ENGINE, "check_mtp_config"),
        reason="MTP that is disabled is built and, on megatron-core 0.19, trained all the same with Megatron-Bridge; "
        "MTP of a family whose config has another name for the number of layers cannot be enabled (Qwen3.5 with verl "
        "0.7.1): ValueError('enable mtp while model has no mtp layer')",
        upstream="verl #5898 (0.8.0), #6626 (0.9.0); needed for the names that verl does not know",
        decide=probes.decide_mtp_config,
        build=around(mtp_config.check_mtp_config),
        absent_ok=True,
    ),
    Patch(
        id="verl_fixes.loss_mask",
        target=Target(ENGINE, "MegatronEngineWithLMHead.prepare_model_inputs"),
        reason="with verl 0.7.1 the MTP loss is taken over prompt tokens, and not over all response tokens; in all "
        "releases a wrong token is trained at the end of each sequence whose first token is",
        upstream="verl #6432 (0.8.0) for the prompts; delete when verl's rolled mask ends in zero",
        decide=probes.decide_loss_mask,
        build=around(_prepare_model_inputs),
        critical=True,
        absent_ok=True,
    ),
    Patch(
        id="verl_fixes.value_head",
        target=Target("verl.models.mcore", "get_mcore_forward_no_padding_fn"),
        reason="with verl 0.7.1's engine every critic ends in TypeError: unexpected keyword argument 'enable_mtp'",
        upstream="fixed in verl 0.8.0; delete when verl 0.7 is no longer supported",
        decide=probes.decide_value_head,
        build=around(value_head.forward_fn),
        absent_ok=True,
    ),
    Patch(
        id="verl_fixes.forward_only",
        target=Target(ENGINE, "MegatronEngine.infer_batch"),
        reason="log-prob recompute and evaluation prepare labels and a loss mask for an MTP loss that nobody takes",
        upstream="no release; delete when forward_step looks at forward_only",
        decide=probes.decide_forward_only,
        build=around(forward_only.infer_batch),
    ),
    Patch(
        id="verl_fixes.legacy_config",
        target=Target(WORKERS, "MegatronWorker._init_hf_config_and_tf_config"),
        reason="with verl 0.7.1's own workers MTP that is disabled is built all the same with Megatron-Bridge, and "
        "MTP that the bridge cannot do is never asked about; verl's git before it refuses all of Megatron-Bridge",
        upstream="gone with the legacy workers, verl 0.8.0",
        decide=probes.decide_legacy,
        build=around(legacy_workers.init_config),
        absent_ok=True,
    ),
    Patch(
        id="verl_fixes.legacy_built",
        target=Target(WORKERS, "ActorRolloutRefWorker._build_model_optimizer"),
        reason="where the bridge builds no MTP layers for a model, verl trains on without MTP and says nothing",
        upstream="gone with the legacy workers, verl 0.8.0",
        decide=probes.decide_legacy,
        build=around(legacy_workers.build_model_optimizer),
        absent_ok=True,
    ),
    *(
        Patch(
            id=f"verl_fixes.packing.{name}",
            target=Target("verl.models.mcore.util", name),
            reason="each tensor of a micro-batch is packed in time that grows with the square of the number of "
            "sequences, and MTP adds two such tensors to training: 0.2 s each for 256 sequences",
            upstream="delete when verl unbinds nested tensors once",
            build=around(_pack),
            absent_ok=True,
        )
        for name in ("preprocess_thd_no_padding", "preprocess_thd_engine")  # verl 0.7; from verl 0.8
    ),
)
