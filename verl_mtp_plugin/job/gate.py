"""Where a job that uses MTP passes: the flag is read, the banner printed, and a missing patch stops the job."""

from __future__ import annotations

import logging
from typing import Any, Final

from .. import runtime
from ..errors import PatchRequiredError
from ..patching.patch import BROKEN, Decision
from ..settings import Mode
from . import configs

logger = logging.getLogger("verl_mtp_plugin")

#: The patch without which MTP must not be trained.
TRAINING: Final = "training.postprocess"

_announced = False
_training_announced = False


def note_config(mtp: Any) -> None:
    """Take notice of verl's MTP config (dataclass or DictConfig), as early as a process sees it.

    Raises:
        SettingsError: MTP is enabled, and ``mtp.plugin`` or the environment holds an unknown mode, option or value, or
            contradicts another config that is in use here.
        PatchRequiredError: MTP is enabled, and a critical patch (strict mode: any patch) cannot be applied here.
    """
    if mtp is None:
        return
    configs.follow(mtp)
    if runtime.settings().mode is Mode.OFF or not mtp.get("enable", False):
        return
    _announce()
    refuse_broken()


def _announce() -> None:
    global _announced
    if _announced:
        return
    _announced = True
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)  # verl sets the root to WARNING; these few lines are meant to be seen
    logger.info("%s", runtime.report().banner())


def refuse_broken() -> None:
    """Stop the job if a critical patch (strict mode: any patch) is known not to be applicable.

    Raises:
        PatchRequiredError: with the patch, what was found, and what to do.
    """
    report = runtime.report()
    strict = runtime.settings().mode is Mode.STRICT
    broken = [record for record in report.with_decision(BROKEN) if record.critical or strict]
    if broken:
        listed = "; ".join(f"{r.name} ({r.target}) is {r.decision}: {r.detail}" for r in broken)
        raise PatchRequiredError(
            found=listed,
            expected="every patch applied in strict mode" if strict else "every critical patch applied",
            advice="Run `verl-mtp doctor` on this node. To run verl as released: VERL_MTP_PLUGIN=off.",
        )
    failed = [plugin for plugin in report.plugins if plugin.error]
    if strict and failed:
        raise PatchRequiredError(
            found="; ".join(f"plugin {p.name!r} from {p.source}: {p.error}" for p in failed),
            expected="every registered plugin loaded in strict mode",
            advice="Repair or uninstall it, or use mode auto.",
        )


def enter_training() -> None:
    """verl is about to train MTP on a model it has built: everything must be in place, here and on all nodes.

    Raises:
        PatchRequiredError: the training patch is not applied.
        UnevenClusterError: strict mode, and the processes of the job differ.
    """
    if runtime.settings().mode is Mode.OFF:
        return
    _announce()
    refuse_broken()
    runtime.require(TRAINING)
    configs.in_training()
    from .cluster import compare_processes

    compare_processes(runtime.report(), strict=runtime.settings().mode is Mode.STRICT)
    _announce_training()


def _announce_training() -> None:
    """A second line where training starts: most patches have been decided by then, on rank 0 and wherever one failed.

    The first one comes when the config is read, and then most wait for modules that nobody has imported yet.
    """
    global _training_announced
    if _training_announced:
        return
    _training_announced = True
    report = runtime.report()
    if report.with_decision(BROKEN | {Decision.LOST}) or _rank() == 0:
        logger.info("%s", report.summary())


def _rank() -> int:
    import torch.distributed as dist

    return int(dist.get_rank()) if dist.is_available() and dist.is_initialized() else 0
