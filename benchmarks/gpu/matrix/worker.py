"""One rank of a job: runs the checks of its layouts, and writes down each outcome.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.gpu.matrix.worker \\
        --megatron-core 0.16.1 --plugin on --layouts tensor,context --out FILE

Rank 0 writes lines of JSON; a check is announced before it runs, so that one that hangs is known by name. Exit status
3: the GPU is in an error from which only a new process recovers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.contract.cell import device_name, outcome_of
from tests.contract.parallel.worker import agreed
from tests.contract.process import WrongCellError, prepare
from tests.contract.world import World

from .layouts import BY_NAME, VERL

BROKEN: Final = 3
#: In TransformerEngine's error where no attention backend does what is asked for.
NO_ATTENTION: Final = "dot product attention"
DISTRIBUTIONS: Final = ("transformer-engine", "transformer-engine-cu13", "nvidia-cudnn-cu13", "nvidia-nccl-cu13")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.matrix.worker")
    parser.add_argument("--megatron-core", required=True, help="the version that must be imported")
    parser.add_argument("--verl", default=VERL, help="the version that must be imported")
    parser.add_argument("--plugin", choices=("on", "off"), required=True)
    parser.add_argument("--layouts", required=True, help="names, with commas")
    parser.add_argument("--checks", default="", help="names, with commas; all by default")
    parser.add_argument("--skip", default="", help="LAYOUT/CHECK, with commas: already run")
    parser.add_argument("--fault", default="none", help="a deliberate one, of tests/contract/parallel/faults.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        world, versions = ready(options)
        with faulty(options.fault):
            run(world, plan(options), Notes(options.out, versions))
    # A peer's threads may wait for one that has left; nothing is left to be done.
    os._exit(0)


def ready(options: argparse.Namespace) -> tuple[World, dict[str, Any]]:
    """Groups, plugin and verl in place.

    Raises:
        WrongCellError: another release than asked for, no verl, no TransformerEngine, or the plugin although it is off.
    """
    device = "cpu" if options.rehearse else "cuda"
    world, versions, error = prepare(options.verl, options.megatron_core, plugin=options.plugin == "on", device=device)
    if error:
        raise WrongCellError(f"verl {options.verl}: {error}")
    if options.rehearse:
        from verl_mtp_plugin.testing import transformer_engine

        transformer_engine.install()
    else:
        importlib.import_module("transformer_engine.pytorch")
        if not world.plugin and "verl_mtp_plugin" in sys.modules:
            raise WrongCellError("verl_mtp_plugin was imported although the plugin is off")
        for name in DISTRIBUTIONS:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
    return world, {**versions, "gpu": device_name(device)}


def faulty(name: str) -> contextlib.AbstractContextManager[None]:
    """The context in which a fault is in place, with the plugin."""
    if name == "none":
        return contextlib.nullcontext()
    from tests.contract.parallel.faults import fault

    return fault(name)


def plan(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Layout and check of what is to be run."""
    from .checks import names

    done = set(options.skip.split(","))
    wanted = options.checks.split(",") if options.checks else names(plugin=options.plugin == "on")
    for layout in options.layouts.split(","):
        yield from ((layout, name) for name in wanted if f"{layout}/{name}" not in done)


def run(world: World, todo: Iterator[tuple[str, str]], notes: Notes) -> None:
    """Every item of the plan, written down before it starts and when it has ended."""
    from tests.contract.parallel.groups import Groups

    from .cell import GpuCell
    from .checks import CHECKS

    torch = importlib.import_module("torch")
    groups, in_use = Groups.make(), ""
    for layout, name in todo:
        if layout != in_use:
            groups.use(BY_NAME[layout])
            in_use = layout
        notes.write(started=[layout, name])
        begun = time.monotonic()
        cell = GpuCell(BY_NAME[layout], groups, world.megatron_core, world)
        ok, detail = outcome_of(CHECKS[name], cell)
        if NO_ATTENTION in detail.lower() and torch.are_deterministic_algorithms_enabled():
            allow_nondeterminism()
            notes.write(attention="none with the same bits twice: others were allowed")
            ok, detail = outcome_of(CHECKS[name], cell)
        broken = "CUDA error" in detail  # nothing runs in this process any more, not even the exchange of outcomes
        if not broken:
            ok, detail = agreed(ok, detail)
        notes.write(layout=layout, check=name, ok=ok, detail=detail, seconds=round(time.monotonic() - begun, 2))
        if broken:
            os._exit(BROKEN)


def allow_nondeterminism() -> None:
    """Let TransformerEngine attend with whatever it has; it asks both switches."""
    os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "1"
    importlib.import_module("torch").use_deterministic_algorithms(False)


class Notes:
    """Lines of JSON, from rank 0 alone, and the same to whoever waits for a sign of life."""

    def __init__(self, path: Path, versions: dict[str, Any]) -> None:
        self._file = path.open("a") if os.environ.get("RANK", "0") == "0" else None
        self.write(versions=versions)

    def write(self, **line: Any) -> None:
        if self._file is not None:
            text = json.dumps(line)
            self._file.write(text + "\n")
            self._file.flush()
            print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
