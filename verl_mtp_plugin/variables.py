"""The environment variables that are ours, and those that were meant to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .setting_values import PARSERS

#: Environment variable with the mode; forwarded to every Ray worker.
MODE_VARIABLE: Final = "VERL_MTP_PLUGIN"
#: Environment variable of each option.
OPTION_VARIABLES: Final = {name: f"{MODE_VARIABLE}_{name.upper()}" for name in PARSERS}
#: All variables that Ray workers on other nodes must see too.
VARIABLES: Final = (MODE_VARIABLE, *OPTION_VARIABLES.values())
#: Holds what is wrong with the variables, once a process of the job has said it.
SAID_VARIABLE: Final = f"{MODE_VARIABLE}_SAID"
#: Ours too, and no switches: that one, the mark of child processes, and where the tests keep what they install.
_OTHERS: Final = (SAID_VARIABLE, f"{MODE_VARIABLE}_CHILD", f"{MODE_VARIABLE}_CACHE")
#: How alike a name must be to one of ours to be taken for it, of 1.
_ALIKE: Final = 0.9


def misspelt(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that are set and nobody reads, with the one that each was meant to be.

    All that begin like ours and are none of them (``VERL_MTP_PLUGIN_LOS``), and those beside verl's own whose name is
    ours but for a letter or two (``VERL_MTP_PLUGN``).
    """
    found = {}
    for name, value in environ.items():
        if not name.upper().startswith("VERL") or name in VARIABLES or name in _OTHERS or not value.strip():
            continue
        begins = name.upper().startswith(MODE_VARIABLE)
        nearest = _nearest(name.upper(), 0.0 if begins else _ALIKE)
        if nearest:
            found[name] = nearest
    return found


def _nearest(name: str, alike: float) -> str:
    from difflib import get_close_matches  # only where something is amiss, or another VERL_ variable is set

    return next(iter(get_close_matches(name, VARIABLES, 1, alike)), "")
