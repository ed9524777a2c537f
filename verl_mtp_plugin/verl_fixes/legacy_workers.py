"""verl 0.7.1's own workers (``megatron_workers``): the same of MTP as in its engine. Gone with verl 0.8.0."""

from __future__ import annotations

from inspect import signature
from typing import Any

from ..bridges.built import bridge_name, check_mtp_was_built
from ..errors import UnsupportedError
from .mtp_config import OVERRIDE


def init_config(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    """``MegatronWorker._init_hf_config_and_tf_config``: disabled MTP stays so, whatever the bridge reads.

    A reference worker builds no MTP either, as none does in verl's engines: nothing is trained there.
    """
    call = signature(original).bind(worker, *args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    given["enable_mtp"] = bool(given["enable_mtp"]) and not _only_reference(worker)
    if not given["enable_mtp"]:
        given["override_transformer_config"] = {**given["override_transformer_config"], OVERRIDE: None}
    return original(*call.args, **call.kwargs)


def _only_reference(worker: Any) -> bool:
    roles = {role: getattr(worker, f"_is_{role}", False) for role in ("ref", "actor", "rollout")}
    return bool(roles["ref"]) and not (roles["actor"] or roles["rollout"])


def build_model_optimizer(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    """``ActorRolloutRefWorker._build_model_optimizer``, checked where MTP is to be trained on what it builds.

    Raises:
        UnsupportedError: the bridge built no MTP, or sequences come padded, and the model would get no labels.
    """
    mtp = worker.config.model.get("mtp", None) or {}
    if not (worker._is_actor and mtp.get("enable", False) and mtp.get("enable_train", False)):
        return original(worker, *args, **kwargs)
    if not worker.config.actor.megatron.get("use_remove_padding", True):
        raise UnsupportedError(
            found="MTP training with use_remove_padding=False in verl's own actor, which gives the model no labels",
            expected="packed sequences, or verl's engine",
            advice="Set actor_rollout_ref.actor.megatron.use_remove_padding=True, or "
            "trainer.use_legacy_worker_impl=disable.",
        )
    built = original(worker, *args, **kwargs)
    check_mtp_was_built(built[0], bridge=bridge_name(vanilla=worker.vanilla_bridge))
    return built
