"""What upstream's own MTP scripts leave out, or still say, so that they run unchanged.

Two things stop them in releases of verl that otherwise could run them: a key that the reward manager reads and the
script does not set, and an option that the release has withdrawn and the script still sets. Neither is about MTP, and
what stands in for them changes no number: without them a script would have to be edited first. Each is said once.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ..environment import Environment
from ..patching import Patch, Target, Verdict, applicable, around, not_needed

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


def _kept(overrides: Iterable[Any], config: Any) -> list[Any]:
    """The overrides without those that set the withdrawn option of a Megatron engine config that lacks it."""
    from omegaconf import OmegaConf

    kept = []
    for override in overrides:
        parent, _, name = str(override.key_or_group).rpartition(".")
        plain = name == WITHDRAWN and not (override.is_delete() or override.is_add() or override.is_force_add())
        node = OmegaConf.select(config, parent) if plain and parent else None
        if node is None or name in node or FOLLOWS not in node or _ENGINE_CONFIG not in str(node.get("_target_")):
            kept.append(override)
            continue
        _say(f"{override.input_line} left out: this verl has no such option, gradients follow {FOLLOWS}")
    return kept


def _apply_overrides(original: Any, overrides: Any, cfg: Any, *args: Any, **kwargs: Any) -> Any:
    return original(_kept(overrides, cfg), cfg, *args, **kwargs)


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
