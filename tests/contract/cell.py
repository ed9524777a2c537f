"""One cell of the matrix: run the checks on the verl and megatron-core that PYTHONPATH gives, and report as JSON.

    PYTHONPATH=<verl layer>:<megatron-core layer> python -m tests.contract.cell \\
        --verl 0.9.1 --megatron-core 0.16.1 --plugin on [--device cpu|cuda] [--json FILE]

Exit status: 0 when every check was run, whatever came out; 1 when the cell itself is wrong (other versions than asked
for, the plugin imported although off).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .process import WrongCellError, prepare

if TYPE_CHECKING:
    from .world import World


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.contract.cell", description=__doc__.splitlines()[0])
    parser.add_argument("--verl", required=True, help="the version that must be imported, or 'none'")
    parser.add_argument("--megatron-core", required=True, help="the version that must be imported")
    parser.add_argument("--plugin", choices=("on", "off"), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the result here instead of to standard output")
    options = parser.parse_args(arguments)
    with contextlib.redirect_stdout(sys.stderr):  # verl and megatron-core print while they are patched and built
        result = run_cell(options.verl, options.megatron_core, plugin=options.plugin == "on", device=options.device)
    text = json.dumps(result, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    else:
        print(text)
    return 0


def run_cell(verl: str, megatron_core: str, *, plugin: bool, device: str) -> dict[str, Any]:
    """Import the pair, check that it is the pair, run every check that applies."""
    started = time.monotonic()
    world, versions, verl_error = prepare(verl, megatron_core, plugin=plugin, device=device)
    imported = time.monotonic()
    checks = run_checks(world)
    if not plugin and "verl_mtp_plugin" in sys.modules:
        raise WrongCellError("verl_mtp_plugin was imported although the plugin is off")
    return {
        "verl": verl,
        "megatron_core": megatron_core,
        "plugin": "on" if plugin else "off",
        "device": device,
        "device_name": device_name(device),
        "versions": versions,
        "verl_import_error": verl_error,
        "checks": checks,
        "patches": applied_patches() if plugin else [],
        "seconds": {"import": round(imported - started, 1), "checks": round(time.monotonic() - imported, 1)},
    }


def run_checks(world: World) -> list[dict[str, Any]]:
    """The outcome of every check that applies."""
    from .checks import checks_for

    outcomes = []
    for check in checks_for(plugin=world.plugin):
        ok, detail = outcome_of(check, world)
        outcomes.append({"name": check.name, "kind": check.kind.value, "ok": ok, "detail": detail})
    return outcomes


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def outcome_of(check: Any, world: Any) -> tuple[bool, str]:
    """Run one check. Any exception is a failure, and its first line the detail."""
    try:
        return True, check.run(world)
    except Exception as error:  # that is what a check is for
        text = " ".join(str(error).split())
        if isinstance(error, AssertionError) and traceback.extract_tb(error.__traceback__)[-1].name.startswith(
            "expect"
        ):
            return False, shorten(text)
        where = traceback.extract_tb(error.__traceback__)[-1]
        return False, shorten(f"{type(error).__name__}: {text}") + f" ({Path(where.filename).name}, {where.name})"


def shorten(text: str, limit: int = 240) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def applied_patches() -> list[dict[str, Any]]:
    """What the plugin decided in this process."""
    report = importlib.import_module("verl_mtp_plugin").report()
    return [{"id": patch.id, "decision": str(patch.decision)} for patch in report.patches]


if __name__ == "__main__":
    sys.exit(main())
