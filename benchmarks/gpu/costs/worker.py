"""The process of one variant: one line of JSON in for each thing to do, one line of JSON out when it is done.

Lines in: ``{"do": "load"}``, ``{"do": "measure", "series": ...}``, ``{"do": "profile", "file": ...}``; it ends with its
standard input.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from . import options as choices

DISTRIBUTIONS: Final = (
    "verl-mtp-plugin", "verl", "megatron-core", "megatron-bridge", "transformer-engine", "torch", "nvidia-cudnn-cu13",
)  # fmt: skip


def main() -> None:
    options = choices.parse()
    variant = choices.VARIANTS[options.variant]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what others print is not an answer

    def answer(**found: Any) -> None:
        answers.write(json.dumps(found) + "\n")

    from . import engine

    engine.prepare(plugin=variant.plugin != "off", rehearse=options.rehearse)
    answer(facts=facts())
    bench: Any = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "load":
                bench = engine.Bench(folder(options), options, mtp=variant.mtp)
                answer(parameters=bench.parameters)
            elif order["do"] == "measure":
                answer(**bench.measure(order["series"]))
            else:
                from . import profile

                answer(**profile.write(bench, Path(order["file"]), variant.title))
        except Exception as error:  # a variant that fails is a result
            traceback.print_exc()
            answer(error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    os._exit(0)


def facts() -> dict[str, Any]:
    """Versions, and whether the plugin is really there, or really not."""
    found = {}
    for name in DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    plugin = sys.modules.get("verl_mtp_plugin")
    return {"versions": found, "plugin_active": bool(plugin and plugin.report().active)}


def folder(options: argparse.Namespace) -> Path:
    """The model's; a rehearsal makes a tiny one."""
    if not options.rehearse:
        return Path(options.model)
    from benchmarks.gpu import model

    made = Path(tempfile.mkdtemp(prefix="costs"))
    model.make(made, layers=2, hidden=128)
    return made


if __name__ == "__main__":
    main()
