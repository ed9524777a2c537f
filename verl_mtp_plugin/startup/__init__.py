"""What the installer puts beside the package: a ``.pth`` line and the module it imports.

Both go to the top of site-packages (``force-include`` in pyproject.toml), in wheels and editable installs. In a wheel
they are only there; in a checkout only here.
"""

from __future__ import annotations

try:
    from ._verl_mtp_startup import CHILD_VARIABLE, AfterImport, active, wanted
except ImportError:
    from _verl_mtp_startup import CHILD_VARIABLE, AfterImport, active, wanted  # type: ignore[import-not-found, no-redef]


def join_job() -> None:
    """SGLang's plugin loader calls this in each of its processes; those of a verl job load the plugin.

    A server that somebody runs without verl is left alone.
    """
    import os
    import sys

    if CHILD_VARIABLE in os.environ or "verl" in sys.modules:
        from .. import autoload  # noqa: F401  # importing it loads the plugin


__all__ = ["CHILD_VARIABLE", "AfterImport", "active", "join_job", "wanted"]
