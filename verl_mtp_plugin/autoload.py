"""Importing this module loads the plugin. It is what every automatic door leads to, and it never raises.

Only the standard library is needed to get here, since what is being guarded against is a plugin that cannot load:
verl swallows what a plugin raises, and the job would train MTP on a stack that nobody has mended.
"""

from __future__ import annotations

import logging
import os
import sys
from types import ModuleType
from typing import Any

from .startup import OFF, AfterImport

logger = logging.getLogger("verl_mtp_plugin")

CONFIG_MODULE = "verl.workers.config.model"

#: Why the plugin could not be loaded in this process; None when it could.
failure: str | None = None


def load() -> None:
    """Activate the plugin; on failure warn once, and refuse MTP in this process."""
    global failure
    try:
        from .runtime import arm_or_hold

        arm_or_hold()
        failure = None
    except KeyboardInterrupt:  # the user's
        raise
    except BaseException as error:  # an exit too: verl must be imported
        if _turned_off(os.environ.get("VERL_MTP_PLUGIN")):
            logger.info("verl-mtp-plugin is off, and could not be loaded (%s: %s)", type(error).__name__, error)
            return
        if failure is None:
            failure = f"{type(error).__name__}: {error}"
            logger.warning(
                "verl-mtp-plugin could not be loaded (%s). verl works as released, but a job with mtp.enable=True "
                "will be refused here. Reinstall the plugin, or set VERL_MTP_PLUGIN=off to run without it.",
                failure,
            )
            _refuse_mtp()


def _turned_off(value: Any) -> bool:
    """Whether a mode is off. The settings that know better may be what failed."""
    if hasattr(value, "items"):
        value = dict(value.items()).get("mode")
    return str(value).strip().lower() in OFF


def _refuse_mtp() -> None:
    """Let verl's MtpConfig refuse ``enable=True``; done by hand, since the patch engine may be what failed."""
    module = sys.modules.get(CONFIG_MODULE)
    if module is not None:
        _guard(module)
    else:
        sys.meta_path.insert(0, AfterImport(CONFIG_MODULE, _guard))


def _guard(module: ModuleType) -> None:
    config = getattr(module, "MtpConfig", None)
    if config is None:
        return
    original = config.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        mode = kwargs.pop("plugin", None)  # a key that verl does not know without us
        original(self, *args, **kwargs)
        if failure is not None and getattr(self, "enable", False) and not _turned_off(mode):
            raise RuntimeError(
                f"verl-mtp-plugin: found mtp.enable=True, but the plugin could not be loaded ({failure}); expected a "
                "loaded plugin. Reinstall it, or set VERL_MTP_PLUGIN=off on all nodes to run verl as released."
            )

    __init__.__wrapped__ = original  # type: ignore[attr-defined]
    config.__init__ = __init__


load()
