"""Multi-Token Prediction for verl: trained right, on every megatron-core.

Installed beside verl, the package loads by itself at ``import verl``. Importing it in a process that has imported
verl does the same, which is what ``VERL_USE_EXTERNAL_MODULES`` and ``model.external_lib`` rely on. It changes only what
is broken for MTP, reversibly; :func:`report` says what.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .patching.report import PatchReport
    from .settings import Settings

__all__ = ["__version__", "activate", "deactivate", "report", "require"]
__version__ = "0.1.0"


def activate(settings: Settings | Mapping[str, Any] | str | None = None) -> PatchReport:
    """Arm all patches in this process and return the report. A second call changes nothing.

    Args:
        settings: what to do, as ``Settings``, as a mode (``"strict"``) or as options (``{"loss": "total_variation"}``)
            on top of the environment; from the environment (``VERL_MTP_PLUGIN``) alone when None. ``off`` there wins.

    Raises:
        SettingsError: ``settings`` or the environment hold an unknown mode, option or value.
    """
    from . import runtime

    return runtime.activate(settings)


def deactivate() -> None:
    """Take every patch back. Live model instances lose the plugin's behavior with their class.

    Raises:
        ForeignPatchError: somebody patched on top of us; everything else has been restored.
    """
    from . import runtime

    runtime.deactivate()


def report() -> PatchReport:
    """What was decided in this process: ``.patches``, ``.plugins``, ``.versions``, ``.to_json()``."""
    from . import runtime

    return runtime.report()


def require(patch_id: str) -> None:
    """Return if the patch (or patch set) is applied or not needed here.

    Raises:
        PatchRequiredError: it is not; the message says why and what to do.
    """
    from . import runtime

    runtime.require(patch_id)


if "verl" in sys.modules and f"{__name__}.autoload" not in sys.modules:
    from . import autoload as _autoload  # noqa: F401  (importing it loads the plugin)
