"""The patch of verl's ``CheckpointEngineManager.update_weights``, where every weight sync begins."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any, Final

from .. import runtime
from ..environment import Environment
from ..patching import Patch, Target, Verdict, applicable, unsupported
from ..settings import Mode, Settings

logger = logging.getLogger("verl_mtp_plugin")

MODULE: Final = "verl.checkpoint_engine.base"
#: The server's limit is the setting itself, and its error says more than ours.
_GRACE_S: Final = 5.0

Body = Callable[..., Coroutine[Any, Any, Any]]


def build(original: Any) -> Any:
    """``update_weights`` with the state machine around it.

    verl's decorator ``auto_await`` looks at the frame that calls it to tell ``await manager.update_weights()`` from
    ``manager.update_weights()``. A wrapper around it would be that frame, so the decorator is put on again.
    """
    body: Body = original.__wrapped__

    @functools.wraps(body)
    def update_weights(self: Any, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Runs in its caller's thread, to which Ctrl-C comes; the coroutine may be given to another."""
        settings = _settings(self)
        if settings.mode is Mode.OFF or _is_upstreams(self):
            return body(self, *args, **kwargs)
        from .interrupt import Interrupt

        interrupt = Interrupt()
        interrupt.begin()
        return _ended(_synchronize(body, self, args, kwargs, settings, interrupt), interrupt)

    return vars(sys.modules[body.__module__])["auto_await"](update_weights)


async def _ended(sync: Coroutine[Any, Any, Any], interrupt: Any) -> Any:
    try:
        return await sync
    finally:
        interrupt.end()


def decide(environment: Environment, module: ModuleType) -> Verdict:
    """A coroutine function beneath ``auto_await``, which stops the manager's own replicas and builds a group."""
    original = module.CheckpointEngineManager.update_weights
    body = getattr(original, "__wrapped__", None)
    names = getattr(getattr(body, "__code__", None), "co_names", ())
    wanted = {"replicas", "build_process_group"}
    if inspect.iscoroutinefunction(body) and wanted <= set(names) and {"auto_await", "ray"} <= set(vars(module)):
        return applicable()
    return unsupported(
        found=f"another update_weights ({original!r})",
        expected=f"auto_await over a coroutine function that uses {', '.join(sorted(wanted))}",
        advice="weights are sent as this verl does it; VERL_MTP_PLUGIN=off silences this",
    )


def _settings(manager: Any) -> Settings:
    """This process's settings, with the job's config: a manager may live where nobody has built verl's MtpConfig."""
    model = getattr(manager.replicas[0], "model_config", None) if manager.replicas else None
    mtp = getattr(model, "mtp", None)
    return runtime.settings() if mtp is None or mtp.get("plugin", None) is None else runtime.settings_of(mtp)


def _is_upstreams(manager: Any) -> bool:
    """Whether a sync is not ours: nobody asked for it, trainer and rollout share their memory, or the servers cannot be
    stopped.
    """
    from .acceptance import uses_mtp
    from .verl_replica import VerlReplica

    replicas = manager.replicas
    if not any(uses_mtp(getattr(r, "config", None), getattr(r, "model_config", None)) for r in replicas):
        return True
    modes = {str(getattr(mode, "value", mode)) for mode in (getattr(r, "rollout_mode", None) for r in replicas)}
    if manager.backend == "naive" or not replicas or "hybrid" in modes:
        return True
    if all(VerlReplica(replica).can_pause for replica in replicas):
        return False
    _warn_uncontrolled(type(replicas[0]).__name__)
    return True


@functools.cache
def _warn_uncontrolled(kind: str) -> None:
    logger.warning(
        "verl-mtp-plugin: the servers of %s have no abort_all_requests, so weights are sent while they serve and "
        "the KV cache stays. Use a later verl for this rollout backend.",
        kind,
    )


async def _synchronize(
    body: Body, manager: Any, args: tuple[Any, ...], kwargs: dict[str, Any], settings: Settings, interrupt: Any
) -> Any:
    from . import sync_metrics
    from .report import SyncOptions
    from .transfer import UpstreamTransfer
    from .verl_replica import VerlReplica
    from .weight_sync import synchronize

    replicas = list(manager.replicas)
    adapters = [VerlReplica(replica, retract=settings.sync_requests == "retract") for replica in replicas]
    call = inspect.signature(body).bind(manager, *args, **kwargs)
    options = SyncOptions(
        free_cache_engine=adapters[0].releases_kv,
        drain_timeout_s=settings.sync_drain_timeout_s + _GRACE_S,
        control_timeout_s=settings.sync_control_timeout_s + _GRACE_S,
        transfer_timeout_s=settings.sync_transfer_timeout_s,
        retries=settings.sync_retries,
        version=call.arguments.get("global_steps"),
    )
    ray = vars(sys.modules[body.__module__])["ray"]
    transfer = UpstreamTransfer(body, manager, replicas, (args, kwargs), ray, settings.sync_control_timeout_s)
    report = await synchronize(adapters, transfer, options, interrupt=interrupt)
    return sync_metrics.hand_over(report)


PATCHES: Final = (
    Patch(
        id="rollout.weight_sync",
        target=Target(MODULE, "CheckpointEngineManager.update_weights"),
        reason="a weight sync that fails leaves the rollout servers paused for ever, their KV cache released and their "
        "weights perhaps half-written, and nothing says which server it was",
        upstream="no release up to 0.9.1; delete when update_weights undoes what it did and names who failed",
        decide=decide,
        build=build,
    ),
)
