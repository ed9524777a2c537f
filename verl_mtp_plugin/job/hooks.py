"""Patches on verl's own job code: light to import, since they are armed at ``import verl``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from inspect import signature
from types import ModuleType
from typing import Any, Final

from ..environment import Environment
from ..hookspecs import hookimpl
from ..patching import Patch, PatchSet, Target, Verdict, applicable, around, not_needed
from ..settings import MODE_KEY
from ..variables import MODE_VARIABLE, SAID_VARIABLE, VARIABLES, misspelt
from . import config_flag, engines, gate, script_defaults

OURS: Final = "plugin code; nothing upstream replaces it"


def _forward_mode(original: Any, *args: Any, **kwargs: Any) -> Any:
    """verl drops variables that the driver has set, so a driver-only one never reaches another node's workers."""
    runtime_env = original(*args, **kwargs)
    names = (*VARIABLES, SAID_VARIABLE, *misspelt(os.environ))  # a mistake is one on all nodes, and is said once
    chosen = {name: os.environ[name] for name in names if os.environ.get(name)}
    if chosen:
        runtime_env.setdefault("env_vars", {}).update(chosen)
    return runtime_env


def _gate_megatron_actor(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    mtp_config = kwargs.get("mtp_config")
    gate.note_config(mtp_config)
    if mtp_config is not None:
        from ..training.fused.engine import note_fused_actor

        call = signature(original).bind(self, *args, **kwargs).arguments
        note_fused_actor(call["config"], mtp_config, call["actor_module"])
    return original(self, *args, **kwargs)


def _takes_mtp_config(environment: Environment, module: ModuleType) -> Verdict:
    if "mtp_config" in signature(module.MegatronPPOActor.__init__).parameters:
        return applicable()
    return not_needed("MegatronPPOActor takes no mtp_config")


def _gate_engine(original: Any, model_config: Any, *args: Any, **kwargs: Any) -> Any:
    gate.note_config(getattr(model_config, "mtp", None))
    return original(model_config, *args, **kwargs)


FORWARD_MODE: Final = Patch(
    id="job.forward_mode",
    target=Target("verl.trainer.constants_ppo", "get_ppo_ray_runtime_env"),
    reason=f"{MODE_VARIABLE} set for the driver would not reach Ray workers on other nodes",
    upstream=OURS,
    build=around(_forward_mode),
)

CONFIG_FLAG: Final = PatchSet(
    "job.config_flag",
    tuple(
        Patch(
            id=f"job.config_flag.{name.strip('_')}",
            target=Target(config_flag.MODULE, f"MtpConfig.{name}"),
            reason=f"verl would reject +{MODE_KEY}=... as an unknown key",
            upstream=OURS,
            build=config_flag.builder(name),
            creates=True,
        )
        for name in config_flag.ATTRIBUTES
    ),
)

GATES: Final = (
    Patch(
        id="job.gate.engine",
        target=Target("verl.utils.megatron_utils", "check_mtp_config"),
        reason="a job whose patches failed would learn of it only after the weights are loaded",
        upstream=OURS,
        build=around(_gate_engine),
        absent_ok=True,  # not there yet in the first snapshots with MTP
    ),
    Patch(
        id="job.gate.megatron_actor",
        target=Target("verl.workers.actor.megatron_actor", "MegatronPPOActor.__init__"),
        reason="verl 0.7.1's own actor never builds an MtpConfig, so the plugin would not see its flag",
        upstream="gone with the legacy worker, verl 0.8.0",
        decide=_takes_mtp_config,
        build=around(_gate_megatron_actor),
    ),
)


@hookimpl
def verl_mtp_patches(environment: Environment) -> Iterable[Patch | PatchSet]:
    """The built-in patches on verl's job code."""
    return (FORWARD_MODE, CONFIG_FLAG, *GATES, *engines.PATCHES, *script_defaults.PATCHES)
