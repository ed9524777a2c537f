"""All releases one after the other, each in an environment of its own, which is made while the one before it runs.

    python3 -m benchmarks.gpu.matrix.all --plugin . --gpus 2 --out DIR [--limit 200]

For a machine with the unpacked bundle of benchmarks/gpu/stack; needs no more than its plain Python. What an earlier
call has completed in DIR is left out, unless ``--again``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.contract.stacks import ROOT

from .layouts import RELEASES

MAKE: Final = ROOT / "benchmarks" / "gpu" / "stack" / "environment.py"
LEAST_S: Final = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.matrix.all", description=__doc__.splitlines()[0])
    parser.add_argument("--plugin", type=Path, default=ROOT, help="repository or wheel of the plugin")
    parser.add_argument("--stack", type=Path, default=Path.home() / "stack")
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for everything")
    parser.add_argument("--releases", default=",".join(RELEASES))
    parser.add_argument("--again", action="store_true", help="also releases that DIR has already")
    parser.add_argument("rest", nargs="*", help="after --: more arguments for each release")
    options = parser.parse_args()
    begun = time.monotonic()
    wanted = [name for name in options.releases.split(",") if options.again or not complete(options.out, name)]
    statuses = {}
    with ThreadPoolExecutor(1) as pool:
        environments = {name: pool.submit(make, name, options.stack, options.plugin) for name in wanted}
        for number, name in enumerate(wanted):
            left = options.limit - (time.monotonic() - begun)
            # One release that hangs must not take the time of all others.
            share = max(left / 2, left - 40.0 * (len(wanted) - number - 1))
            statuses[name] = run(name, environments[name], options, share) if left > LEAST_S else "no time left"
            say(f"{name}: {statuses[name]}, {time.monotonic() - begun:.0f} s since the start")
    sys.exit(0 if all(status == "all checks hold with the plugin" for status in statuses.values()) else 1)


def complete(out: Path, release: str) -> bool:
    file = out / f"{release}.json"
    return file.exists() and bool(json.loads(file.read_text())["complete"])


def make(release: str, stack: Path, plugin: Path) -> Path:
    """Its settings, a shell file.

    Raises:
        RuntimeError: it cannot be made; with what environment.py said.
    """
    name = "c" + "".join(f"{int(part):02d}" for part in release.split(".")[:2])
    options = ["--core", release, "--bridge", "none", "--no-serving", "--plugin", str(plugin), "--stack", str(stack)]
    done = subprocess.run([sys.executable, MAKE, name, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"no environment: {done.stdout}{done.stderr}"[-1500:])
    return stack / "envs" / name / "env.sh"


def run(release: str, environment: Future[Path], options: argparse.Namespace, seconds: float) -> str:
    """How it went, in words."""
    try:
        settings = environment.result()
    except RuntimeError as error:
        return str(error)
    arguments = ["--megatron-core", release, "--gpus", str(options.gpus), "--out", str(options.out.resolve())]
    arguments += ["--limit", f"{seconds:.0f}", *options.rest]
    command = f". {shlex.quote(str(settings))} && exec python -m benchmarks.gpu.matrix {shlex.join(arguments)}"
    try:
        status = subprocess.run(["bash", "-c", command], cwd=ROOT, timeout=seconds + 30, check=False).returncode
    except subprocess.TimeoutExpired:
        return "did not end"
    return "all checks hold with the plugin" if status == 0 else f"exit status {status}"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
