"""SGLang's own door: the entry-point group ``sglang.srt.plugins`` (SGLang >= 0.5.11)."""

from __future__ import annotations

import os
import sys

from . import CHILD_VARIABLE


def join_job() -> None:
    """SGLang calls this in each of its processes, spawned schedulers included; those of a verl job load the plugin.

    A server that somebody runs without verl is left alone.
    """
    if CHILD_VARIABLE in os.environ or "verl" in sys.modules:
        from .. import autoload  # noqa: F401  # importing it loads the plugin
