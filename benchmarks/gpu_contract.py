"""The contract's checks on a GPU: real CUDA, bf16 and NCCL, no stand-ins, for every megatron-core.

    VERL_MTP_LAYERS=... python benchmarks/gpu_contract.py --json FILE    # on a machine with a GPU; verl is not needed
    python benchmarks/gpu_contract.py --render FILE                      # write docs/RESULTS.md from that

Exit status 1 unless every check that is asked for passes with the plugin.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import results_page

sys.path.insert(0, str(results_page.ROOT))

from tests.contract import stacks

ASKED = ("required", "plugin")


def run_cell(megatron_core: str, plugin: str) -> dict[str, Any]:
    cell = stacks.Cell("none", megatron_core)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([stacks.python_path(cell), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary, "cell.json")
        command = [
            sys.executable, "-m", "tests.contract.cell", "--verl", "none", "--megatron-core", megatron_core,
            "--plugin", plugin, "--device", "cuda", "--json", str(out),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=results_page.ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"megatron-core {megatron_core}, plugin {plugin}:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def outcomes(cell: dict[str, Any], *kinds: str) -> tuple[int, dict[str, str]]:
    """How many checks of these kinds there were, and those that failed with what they said."""
    chosen = [check for check in cell["checks"] if check["kind"] in kinds]
    return len(chosen), {check["name"]: check["detail"] for check in chosen if not check["ok"]}


def render(cells: list[dict[str, Any]]) -> str:
    lines = ["| megatron-core | with | plugin's own | without | fails with the plugin |", "|---|---|---|---|---|"]
    for version in stacks.MEGATRON_CORE:
        on, off = (
            next(c for c in cells if c["megatron_core"] == version and c["plugin"] == mode) for mode in ("on", "off")
        )
        scores = []
        for cell, kind in ((on, "required"), (on, "plugin"), (off, "required")):
            count, failed = outcomes(cell, kind)
            scores.append(f"{count - len(failed)}/{count}")
        failed = outcomes(on, *ASKED)[1]
        lines.append(f"| {version} | {' | '.join(scores)} | {', '.join(f'`{name}`' for name in failed) or 'none'} |")
    first = cells[0]
    return f"""
## The same checks on a GPU

megatron-core alone, without verl: MTP is asked for as verl's patch functions do (*with*), and without the plugin the models are megatron-core's own. Real CUDA, bf16, NCCL with one process, megatron-core's local layer spec, no TransformerEngine; logits and isolation bit for bit, gradients within 3% of the largest.

{chr(10).join(lines)}

{first["device_name"]}, Python {first["versions"]["python"]}, torch {first["versions"]["torch"]}. `python benchmarks/gpu_contract.py`.
"""  # noqa: E501


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="run, and write what was found")
    parser.add_argument("--render", type=Path, help="write docs/RESULTS.md from such a file")
    options = parser.parse_args()
    if not (options.json or options.render):
        parser.error("give --json FILE, --render FILE or both")
    if options.json:
        cells = [run_cell(version, plugin) for version in stacks.MEGATRON_CORE for plugin in ("on", "off")]
        options.json.write_text(json.dumps(cells, indent=1))
    else:
        cells = json.loads(options.render.read_text())
    if options.render:
        results_page.write("contract_cuda", {"cells": cells}, render(cells))
    failed = {c["megatron_core"]: outcomes(c, *ASKED)[1] for c in cells if c["plugin"] == "on"}
    print(json.dumps(failed, indent=1))
    return 1 if any(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
