"""verl 0.7.1's own workers (``megatron_workers``): the same of MTP as in its engine. Gone with verl 0.8.0."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from ..bridges.assertion import asserts_vanilla, lifted
from ..errors import UnsupportedError
from .mtp_config import OVERRIDE


def init_config(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    """``MegatronWorker._init_hf_config_and_tf_config``: what it assumes of a bridge is asked of the bridge.

    Disabled MTP stays so, whatever the bridge reads. A reference worker builds no MTP either, as none does in verl's
    engines: nothing is trained there.

    Raises:
        UnsupportedError: MTP is enabled, and the bridge cannot build and convert this model's.
    """
    call = signature(original).bind(worker, *args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    given["enable_mtp"] = bool(given["enable_mtp"]) and not _only_reference(worker)
    overrides = given["override_transformer_config"]
    if not given["enable_mtp"]:
        given["override_transformer_config"] = {**overrides, OVERRIDE: None}
        return original(*call.args, **call.kwargs)
    if asserts_vanilla(original):
        given["megatron_config"] = lifted(given["megatron_config"])
    from ..bridges.engine import demand, refusing_unknown

    def hf_config() -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(worker.local_path, trust_remote_code=given["trust_remote_code"])

    with refusing_unknown(hf_config, vanilla=given["megatron_config"].get("vanilla_mbridge", True)):
        result = original(*call.args, **call.kwargs)
    if worker.bridge is not None:
        demand(worker.bridge, worker.provider, worker.hf_config, overrides)
    return result


def _only_reference(worker: Any) -> bool:
    roles = {role: getattr(worker, f"_is_{role}", False) for role in ("ref", "actor", "rollout")}
    return bool(roles["ref"]) and not (roles["actor"] or roles["rollout"])


def build_model_optimizer(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    """``ActorRolloutRefWorker._build_model_optimizer``, checked where it builds an actor's model.

    Raises:
        UnsupportedError: MTP is enabled and was not built, or not in full; it is disabled and was built; or sequences
            come padded, and the model would get no labels to train MTP with.
    """
    mtp = worker.config.model.get("mtp", None) or {}
    enabled = bool(mtp.get("enable", False))
    if not worker._is_actor:
        return original(worker, *args, **kwargs)
    packed = worker.config.actor.megatron.get("use_remove_padding", True)
    if enabled and mtp.get("enable_train", False) and not packed:
        raise UnsupportedError(
            found="MTP training with use_remove_padding=False in verl's own actor, which gives the model no labels",
            expected="packed sequences, or verl's engine",
            advice="Set actor_rollout_ref.actor.megatron.use_remove_padding=True, or "
            "trainer.use_legacy_worker_impl=disable.",
        )
    built = original(worker, *args, **kwargs)
    overrides: Mapping[str, Any] = (
        signature(original).bind(worker, *args, **kwargs).arguments.get("override_transformer_config", {})
    )
    from ..bridges.engine import check_built

    check_built(worker.bridge, built[0], worker.hf_config, overrides, vanilla=worker.vanilla_bridge, enabled=enabled)
    return built
