"""Patches on verl's optimizer step: light to import, since they are armed at ``import verl``."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

from ...environment import Environment
from ...patching import Patch, PatchSet, Target, Verdict, applicable, around, not_needed

ENGINE: Final = "verl.workers.engine.megatron.transformer_impl"
WORKERS: Final = "verl.workers.engine_workers"
ACTOR: Final = "verl.workers.actor.megatron_actor"
REASON: Final = (
    "each micro-batch's and context-parallel rank's MTP loss counts the same however few tokens it has, verl's MTP "
    "metrics are means of means, and verl 0.7.1 hangs while it collects them with context parallelism"
)
UPSTREAM: Final = "verl #5895, #6464; delete when verl normalizes the MTP loss by the step's tokens"


def _forward_backward_batch(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .engine import forward_backward_batch

    return forward_backward_batch(original, *args, **kwargs)


def _train_batch(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .engine import train_batch

    return train_batch(original, *args, **kwargs)


def _no_metrics(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .engine import no_metrics

    return no_metrics(original, *args, **kwargs)


def _worker_metrics(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .engine import worker_metrics

    return worker_metrics(original, *args, **kwargs)


def _actor_forward_backward_batch(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .legacy_actor import forward_backward_batch

    return forward_backward_batch(original, *args, **kwargs)


def _actor_mtp_loss(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .legacy_actor import mtp_loss

    return mtp_loss(original, *args, **kwargs)


def _actor_update_policy(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .legacy_actor import update_policy

    return update_policy(original, *args, **kwargs)


def _has_mtp(environment: Environment, module: ModuleType) -> Verdict:
    if hasattr(module, "get_megatron_mtp_loss"):
        return applicable()
    return not_needed(f"{module.__name__} knows no MTP")


def _patch(area: str, module: str, qualname: str, wrapper: Any) -> Patch:
    return Patch(
        id=f"training.{area}.{qualname.rpartition('.')[2]}",
        target=Target(module, qualname),
        reason=REASON,
        upstream=UPSTREAM,
        decide=_has_mtp,
        build=around(wrapper),
        absent_ok=True,
    )


PATCHES: Final = (
    PatchSet(
        "training.engine_step",
        (
            _patch("engine_step", ENGINE, "MegatronEngine.forward_backward_batch", _forward_backward_batch),
            _patch("engine_step", ENGINE, "MegatronEngine.train_batch", _train_batch),
            _patch("engine_step", ENGINE, "get_megatron_mtp_loss", _no_metrics),
        ),
    ),
    Patch(
        id="training.worker_metrics",
        target=Target(WORKERS, "TrainingWorker._postprocess_output"),
        reason="the MTP metrics reach verl's SFT trainer as lists in lists, which its console and trackers leave out",
        upstream="no release; delete when verl reduces all metrics of its engines, and not mtp_losses alone",
        build=around(_worker_metrics),
        absent_ok=True,
    ),
    PatchSet(
        "training.legacy_actor",
        (
            _patch("legacy_actor", ACTOR, "MegatronPPOActor.forward_backward_batch", _actor_forward_backward_batch),
            _patch("legacy_actor", ACTOR, "MegatronPPOActor.update_policy", _actor_update_policy),
            _patch("legacy_actor", ACTOR, "get_megatron_mtp_loss", _actor_mtp_loss),
        ),
    ),
)
