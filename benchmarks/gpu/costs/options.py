"""What a run is asked for; its processes get the same."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: What is measured of all variants.
MAIN: Final = ("step", "recompute")
#: What tells where the time goes, of the variants that are profiled, fewer samples, as long as there is time.
EXTRA: Final = ("same", "small")
SAYS: Final = {
    "step": "training step, one micro-batch, new lengths each time",
    "same": "the same, the same batch each time",
    "small": "the same as the first, in micro-batches of at most 8,192 tokens",
    "recompute": "log-prob recompute, one micro-batch, new lengths each time",
}
SMALL: Final = 8192


@dataclass(frozen=True)
class Variant:
    """One process: whether its model has MTP, and what ``VERL_MTP_PLUGIN`` says."""

    title: str
    mtp: bool
    plugin: str


VARIANTS: Final = {
    "no_mtp": Variant("without MTP", mtp=False, plugin="off"),
    "released": Variant("verl as released", mtp=True, plugin="off"),
    "plugin": Variant("with the plugin", mtp=True, plugin="auto"),
}
PROFILED: Final = ("no_mtp", "plugin")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.costs")
    parser.add_argument("--model", type=Path, help="folder that benchmarks.gpu.model has made")
    parser.add_argument("--out", type=Path, required=True, help="folder for costs.json and the profiles")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--tokens", type=int, default=40_000, help="of a step, about")
    parser.add_argument("--lengths", type=int, nargs=2, default=(100, 400), help="of sequences, shortest and longest")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--each", type=int, default=6, help="samples of a series in a round, after one or two that do not count"
    )
    parser.add_argument("--limit", type=float, default=200.0, help="seconds for everything")
    parser.add_argument("--profile", action="store_true", help=f"profiles of {' and '.join(PROFILED)} as text")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, small; numbers mean nothing")
    parser.add_argument("--variant", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.model is None and not options.rehearse:
        parser.error("--model is needed")
    if options.rehearse:
        options.tokens, options.lengths = min(options.tokens, 400), (20, 60)
    return options
