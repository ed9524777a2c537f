"""What the installer puts beside the package: a ``.pth`` line and the module it imports.

Both go to the top of site-packages (``force-include`` in pyproject.toml), in wheels and editable installs. In a wheel
they are only there; in a checkout only here.
"""

from __future__ import annotations

try:
    from ._verl_mtp_startup import CHILD_VARIABLE, AfterImport, active, wanted
except ImportError:
    from _verl_mtp_startup import CHILD_VARIABLE, AfterImport, active, wanted  # type: ignore[import-not-found, no-redef]

__all__ = ["CHILD_VARIABLE", "OFF", "AfterImport", "active", "wanted"]

#: Modes that turn the plugin off, as the settings read them. Here since the settings may be what cannot be loaded.
OFF = ("off", "false", "no", "0")
