"""The contract on a megatron-core that no package index has: a checkout of its main or dev branch.

    python3.11 noxfile.py upstream -- ~/Megatron-LM

Runs one cell (the newest verl of the matrix), :mod:`.hyper_connections` where this megatron-core has them, and the
comparison of the packed rolls on two ranks. Exit status 1 if anything of it failed. Nothing is installed or compiled:
the checkout is put on PYTHONPATH beside metadata with its version.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .stacks import LAYERS_VARIABLE, ROOT, VERL, Cell, layer


class NoCheckoutError(RuntimeError):
    """The directory holds no megatron-core."""


def version(checkout: Path) -> str:
    """What ``megatron.core.__version__`` says where no version control is asked.

    Raises:
        NoCheckoutError: there is no ``megatron/core/package_info.py``.
    """
    source = checkout / "megatron" / "core" / "package_info.py"
    if not source.is_file():
        raise NoCheckoutError(f"found no {source}; expected a checkout of https://github.com/NVIDIA/Megatron-LM")
    found = dict(re.findall(r"^(MAJOR|MINOR|PATCH|PRE_RELEASE) = '?([^'\n]*)'?$", source.read_text(), re.MULTILINE))
    return f"{found['MAJOR']}.{found['MINOR']}.{found['PATCH']}{found.get('PRE_RELEASE', '')}"


def make_layers(checkout: Path, base: Path, verl: str) -> Cell:
    """Layers in ``base``: the checkout as megatron-core, and the verl that is installed as one."""
    cell = Cell(verl, version(checkout))
    target = base / f"megatron-core-{cell.megatron_core}"
    info = target / f"megatron_core-{cell.megatron_core}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: megatron-core\nVersion: {cell.megatron_core}\n")
    (target / "megatron").symlink_to(checkout.resolve() / "megatron")
    (base / f"verl-{verl}").symlink_to(layer("verl", verl))
    return cell


def ask(command: list[str], environment: dict[str, str]) -> Any:
    """The JSON in the last line that a module of the tests printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}")
    return json.loads(done.stdout[done.stdout.index("{") :])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="noxfile.py upstream --", description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of https://github.com/NVIDIA/Megatron-LM")
    parser.add_argument("--verl", default=VERL[-1], help="a release that is installed as a layer")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        cell = make_layers(options.checkout, base, options.verl)
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("VERL_", "PYTHONPATH"))}
        parts = (base / f"verl-{cell.verl}", base / f"megatron-core-{cell.megatron_core}")
        environment |= {
            LAYERS_VARIABLE: str(base),
            "PYTHONPATH": os.pathsep.join(map(str, parts)),
            "OMP_NUM_THREADS": "1",
            "NO_VCS_VERSION": "1",  # megatron-core appends the commit otherwise
        }
        which = ["--verl", cell.verl, "--megatron-core", cell.megatron_core]
        checks = ask(["tests.contract.cell", *which, "--plugin", "on"], environment)["checks"]
        checks += ask(["tests.contract.hyper_connections", *which], environment)["checks"]
        os.environ.update(environment)
        checks += _packed_rolls(cell.megatron_core)
    failed = [check for check in checks if not check["ok"]]
    for check in failed:
        print(f"FAILED {check['name']}: {check['detail']}")
    print(f"{cell}: {len(checks) - len(failed)} of {len(checks)} checks hold")
    return bool(failed)


def _packed_rolls(megatron_core: str) -> list[dict[str, Any]]:
    from tests.stack.processes import ask as ask_ranks

    checks = []
    for rank, found in enumerate(ask_ranks("packed_roll_worker", megatron_core, ranks=2)):
        ok = "applied" in found["decisions"].values() and set(found["same"].values()) == {found["cases"]}
        detail = f"{found['decisions']}, {found['same']} of {found['cases']}"
        checks.append({"name": f"packed_roll, rank {rank} of 2", "ok": ok, "detail": detail})
    return checks


if __name__ == "__main__":
    sys.exit(main())
