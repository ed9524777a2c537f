"""What the plugin costs where it is not wanted: at every interpreter start, and at ``import verl``.

    python3.11 noxfile.py import_time                 # -- --render: the page from what was found the last time

Start-up: bare environments with our ``.pth`` and its module, an empty one, and one that only imports sys, in turn. At
``import verl``: a process that has imported verl with plugins turned off, and then loads ours; the entry-point scan
that verl >= 0.9 does anyway is ours here, so this is an upper bound.
"""

from __future__ import annotations

import compileall
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import results_page

from tests.contract import stacks

RUNS = 30
LOADS = 10
STARTUP = results_page.ROOT / "verl_mtp_plugin" / "startup"

LOAD = """
import time, verl
begin = time.perf_counter()
import verl_mtp_plugin.autoload
print("=>", (time.perf_counter() - begin) * 1e3)
assert verl_mtp_plugin.report().active
"""


def bare_environment(folder: Path, line: str | None) -> Path:
    """An environment with one ``.pth`` file in it: ours, or one with ``line``. Returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    if line is None:
        for name in ("verl_mtp_plugin.pth", "_verl_mtp_startup.py"):
            (site / name).write_text((STARTUP / name).read_text())
        compileall.compile_dir(site, quiet=1)  # as pip does when it installs
    else:
        (site / "other.pth").write_text(line)
    return python


def seconds(python: Path) -> float:
    begin = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True)
    return time.perf_counter() - begin


def startup_ms() -> dict[str, list[float]]:
    """Wall milliseconds of ``python -c pass``, the two environments in turn."""
    with tempfile.TemporaryDirectory() as temporary:
        lines = {"empty": "", "import sys": "import sys\n", "ours": None}
        pythons = {name: bare_environment(Path(temporary, name), line) for name, line in lines.items()}
        for python in pythons.values():
            seconds(python)  # writes the compiled files
        times: dict[str, list[float]] = {name: [] for name in pythons}
        for _ in range(RUNS):
            for name, python in pythons.items():
                times[name].append(seconds(python) * 1e3)
    return times


def load_ms(verl: str) -> list[float]:
    """Wall milliseconds that loading the plugin takes in a process that has imported verl."""
    times = []
    for _ in range(LOADS):
        env = {
            "PYTHONPATH": f"{stacks.layer('verl', verl)}",
            "VERL_USE_EXTERNAL_PLUGINS": "none",
            "PATH": "/usr/bin:/bin",
        }
        done = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True, check=True)
        times.append(float(done.stdout.rpartition("=>")[2]))
    return times


def quartiles(times: list[float]) -> str:
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def collect() -> dict[str, Any]:
    """All samples."""
    return {
        "date": date.today().isoformat(),
        "hardware": results_page.hardware(),
        "python": sys.version.split()[0],
        "startup_ms": startup_ms(),
        "load_ms": {verl: load_ms(verl) for verl in stacks.VERL},
    }


def render(document: dict[str, Any]) -> str:
    startup, loads = document["startup_ms"], document["load_ms"]
    differences = [ours - empty for ours, empty in zip(startup["ours"], startup["empty"], strict=True)]
    rows = "\n".join(f"| loading the plugin at `import verl`, verl {v} | {quartiles(t)} |" for v, t in loads.items())
    return f"""
## What it costs where it is not used

Milliseconds of wall time, median (quartiles). Python {document["python"]}; {document["hardware"]}. `python3.11 noxfile.py import_time` on {document["date"]}, with the patches that the plugin had on that day.

| | ms |
|---|---|
| `python -c pass` with an empty `.pth`, {len(startup["empty"])} runs | {quartiles(startup["empty"])} |
| with a `.pth` that says `import sys`: the least that one which does anything can cost | {quartiles(startup["import sys"])} |
| with ours | {quartiles(startup["ours"])} |
| ours less the empty one, run by run | {quartiles(differences)} |
{rows}
"""  # noqa: E501


def main() -> None:
    """Measure, or with ``--render`` make the page from what was found the last time."""
    saved = results_page.RESULTS / "import_time.json"
    document = json.loads(saved.read_text()) if "--render" in sys.argv[1:] else collect()
    results_page.write("import_time", document, render(document))


if __name__ == "__main__":
    main()
