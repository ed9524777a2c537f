"""What upstream's own MTP scripts leave out, or still say, so that they run unchanged.

Two things stop them in releases of verl that otherwise could run them: a key that the reward manager reads and the
script does not set, and an option that the release has withdrawn and the script still sets. Neither is about MTP, and
what stands in for them changes no number: without them a script would have to be edited first. Each is said once, and
done for jobs with MTP alone: others fail as verl as released does.
"""

from __future__ import annotations

import copy
import inspect
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from .. import runtime
from ..environment import Environment
from ..patching import Patch, Target, Verdict, applicable, around, not_needed
from ..settings import Mode

logger = logging.getLogger("verl_mtp_plugin")

#: Read by verl's ``dapo`` reward manager wherever the buffer is enabled; whether two more metrics are logged.
LOG: Final = "log"
#: verl's Megatron engine config, and what it had until 0.9.0: later releases let it follow the other.
WITHDRAWN: Final = "grad_offload"
FOLLOWS: Final = "param_offload"
_ENGINE_CONFIG: Final = "McoreEngineConfig"

_said: set[str] = set()


def _say(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logger.warning("verl-mtp-plugin: %s", text)


def _reads_log(function: str) -> Any:
    """A probe: whether ``DAPORewardManager.<function>`` reads ``.log`` as an attribute, which a missing key breaks."""

    def decide(environment: Environment, module: ModuleType) -> Verdict:
        method: Any = getattr(module.DAPORewardManager, function, None)
        code = getattr(inspect.unwrap(method), "__code__", None)
        if code is not None and LOG not in code.co_names:
            return not_needed(f"DAPORewardManager.{function} does without overlong_buffer_cfg.log")
        return applicable()

    return decide


def _complete_buffer(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """``DAPORewardManager.__init__``, then the key that the script of the same release does not set."""
    original(self, *args, **kwargs)
    config = inspect.signature(original).bind(self, *args, **kwargs).arguments.get("config")
    if config is not None and not _has_mtp(config):  # the legacy manager is not given the job's config
        return
    buffer = getattr(self, "overlong_buffer_cfg", None)
    if buffer is None or not buffer.get("enable", False) or LOG in buffer:
        return
    from omegaconf import DictConfig, open_dict

    if isinstance(buffer, DictConfig):
        with open_dict(buffer):
            buffer[LOG] = False
        _say("overlong_buffer_cfg.log is not set and verl's dapo reward manager reads it: taken as False")


def _withdrawn_here(environment: Environment, module: ModuleType) -> Verdict:
    """Whether the installed verl's Megatron config lacks the option. The file is read: no module says so."""
    file = getattr(sys.modules.get("verl"), "__file__", None)
    config = Path(file or "").parent / "trainer" / "config" / "engine" / "megatron.yaml"
    if not file or not config.is_file():
        return not_needed("verl has no Megatron engine config")
    if any(line.startswith(f"{WITHDRAWN}:") for line in config.read_text().splitlines()):
        return not_needed(f"verl's Megatron engine config has {WITHDRAWN}")
    return applicable(f"verl's Megatron engine config has no {WITHDRAWN}")


def _is_withdrawn(override: Any, config: Any) -> bool:
    """Whether an override sets the withdrawn option of a Megatron engine config that lacks it."""
    from omegaconf import OmegaConf

    parent, _, name = str(override.key_or_group).rpartition(".")
    plain = name == WITHDRAWN and not (override.is_delete() or override.is_add() or override.is_force_add())
    node = OmegaConf.select(config, parent) if plain and parent else None
    if node is None or name in node:
        return False
    return FOLLOWS in node and _ENGINE_CONFIG in str(node.get("_target_"))


def _has_mtp(config: Any) -> bool:
    """Whether the config of a job has MTP on, and this plugin too."""
    from omegaconf import OmegaConf

    mtp = OmegaConf.select(config, "actor_rollout_ref.model.mtp")
    return bool(mtp) and bool(mtp.get("enable", False)) and runtime.settings_of(mtp).mode is not Mode.OFF


def _apply_overrides(original: Any, overrides: Any, cfg: Any, *args: Any, **kwargs: Any) -> Any:
    """Hydra's overrides of a config, without the withdrawn option where the outcome is a job with MTP."""
    overrides = list(overrides)
    withdrawn = [override for override in overrides if _is_withdrawn(override, cfg)]
    kept = [override for override in overrides if override not in withdrawn]
    if not withdrawn:
        return original(overrides, cfg, *args, **kwargs)
    outcome = copy.deepcopy(cfg)
    original(kept, outcome, *args, **kwargs)
    if not _has_mtp(outcome):
        return original(overrides, cfg, *args, **kwargs)
    for override in withdrawn:
        _say(f"{override.input_line} left out: this verl has no such option, gradients follow {FOLLOWS}")
    return original(kept, cfg, *args, **kwargs)


def _reward_manager(id: str, module: str, function: str) -> Patch:
    return Patch(
        id=id,
        target=Target(module, "DAPORewardManager.__init__"),
        reason="verl's own MTP script enables the overlong buffer without `log`: ConfigAttributeError at the first "
        "reward",
        upstream="no release reads it with a default; delete when one does",
        decide=_reads_log(function),
        build=around(_complete_buffer),
        absent_ok=True,
    )


PATCHES: Final = (
    _reward_manager("job.overlong_log", "verl.experimental.reward_loop.reward_manager.dapo", "run_single"),
    _reward_manager("job.overlong_log.legacy", "verl.workers.reward_manager.dapo", "__call__"),
    Patch(
        id="job.withdrawn_option",
        target=Target("hydra._internal.config_loader_impl", "ConfigLoaderImpl._apply_overrides_to_config"),
        reason=f"the MTP scripts of verl up to 0.9.0 set megatron.{WITHDRAWN}, which 0.9.1 refuses to parse",
        upstream="withdrawn after 0.9.0; delete when no supported script sets it",
        decide=_withdrawn_here,
        build=around(_apply_overrides),
        absent_ok=True,  # a private place of Hydra's: where it has moved, such a script fails as before
    ),
)
