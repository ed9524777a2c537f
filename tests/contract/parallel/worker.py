"""One of the processes of a release: runs every check of the layouts it is given, and writes down each outcome.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 PYTHONPATH=<megatron-core layer> \\
        python -m tests.contract.parallel.worker --megatron-core 0.16.1 --out FILE [--layouts data,tensor | --faults]

Lines of JSON: a check is announced before it runs, so that one that hangs is known by name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..cell import outcome_of
from ..process import prepare, stand_ins
from .layouts import BY_NAME


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.contract.parallel.worker")
    parser.add_argument("--megatron-core", required=True)
    parser.add_argument("--out", type=Path, required=True, help="each process has one of its own; both say the same")
    parser.add_argument("--layouts", default=",".join(BY_NAME), help="names, with commas")
    parser.add_argument("--checks", default="", help="names, with commas; all by default")
    parser.add_argument("--faults", action="store_true", help="only the checks that faults.py wants to see fail")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    with contextlib.redirect_stdout(sys.stderr), options.out.open("w") as out:
        world, versions, _ = prepare("none", options.megatron_core, plugin=True, device="cpu")
        note(out, versions=versions)
        run(world.megatron_core, plan(options, world.megatron_core), out)
    stand_ins().end_process()


def plan(options: Any, megatron_core: tuple[int, ...]) -> Iterator[tuple[str, str, str]]:
    """Layout, check and fault of everything that is to be run."""
    from .checks import checks_for
    from .faults import MUST_TRIP

    if options.faults:
        todo = [(place, fault) for fault, places in MUST_TRIP.items() for place in places]
        for place, fault in sorted(todo):  # so that each layout's groups are made once
            layout, check = place.split("/")
            yield layout, check, fault
        return
    for layout in options.layouts.split(","):
        if megatron_core >= BY_NAME[layout].since:
            wanted = options.checks.split(",") if options.checks else checks_for(BY_NAME[layout], megatron_core)
            yield from ((layout, check, "none") for check in wanted)


def run(megatron_core: tuple[int, ...], todo: Iterator[tuple[str, str, str]], out: Any) -> None:
    """Every item of the plan, written down before it starts and when it has ended."""
    from .checks import CHECKS, Cell
    from .faults import fault
    from .groups import Groups
    from .stand_ins import install

    install()
    groups, in_use = Groups.make(), ""
    for layout, name, wrong in todo:
        if layout != in_use:
            groups.use(BY_NAME[layout])
            in_use = layout
        note(out, started=[layout, name])
        with fault(wrong):
            ok, detail = agreed(*outcome_of(CHECKS[name], Cell(BY_NAME[layout], groups, megatron_core)))
        note(out, layout=layout, check=name, fault=wrong, ok=ok, detail=detail)


def agreed(ok: bool, detail: str) -> tuple[bool, str]:
    """The outcome of both processes: it fails if one does."""
    import torch

    everybody: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, (ok, detail))
    failed = [f"rank {rank}: {text}" for rank, (fine, text) in enumerate(everybody) if not fine]
    return (False, "; ".join(failed)) if failed else (True, everybody[-1][1])


def note(out: Any, **line: Any) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
