"""pip install into fresh environments, each with one verl release and all that it asks for.

    python3.11 noxfile.py fresh                       # -- --render: the page from what was found the last time

For each: what pip changed, and the plugin's banner from the driver and from a Ray actor. Minutes and gigabytes each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import results_page

sys.path.insert(0, str(results_page.ROOT))

from tests.contract import stacks

#: torch first and alone, so that no other build of it comes later. The limits are what verl's trainer needs
#: (pyarrow 24 and datasets 5 break it), and what 0.8.0 imports and does not declare.
TORCH = "torch==2.13.0"
BESIDES = ["pyarrow<24", "datasets<5", "cachetools", "fastapi", "uvicorn"]
VERL = ("0.7.1", "0.8.0", stacks.VERL[-1])

BANNER = """
import sys

def banner():
    import verl
    return sys.modules["verl_mtp_plugin.runtime"].report().banner()

import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)

@ray.remote
class Actor:
    def banner(self):
        return banner()

print("=> driver:", banner())
print("=> Ray actor:", ray.get(Actor.remote().banner.remote()))
"""


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def freeze(python: Path) -> list[str]:
    return run(python, "-m", "pip", "freeze").splitlines()


def examine(verl: str, wheel: Path, folder: Path) -> dict[str, Any]:
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", TORCH)
    run(python, "-m", "pip", "install", "-q", f"verl=={verl}", *BESIDES)
    before = freeze(python)
    run(python, "-m", "pip", "install", "-q", wheel)
    after = freeze(python)
    (folder / "banner.py").write_text(BANNER)
    banners = [line[3:] for line in run(python, folder / "banner.py").splitlines() if line.startswith("=> ")]
    run(python, "-m", "pip", "uninstall", "-q", "-y", "verl-mtp-plugin")
    left = [str(path) for path in folder.rglob("*verl_mtp*") if "__pycache__" not in path.parts]
    return {
        "verl": verl,
        "packages_before": len(before),
        "removed_or_changed": sorted(set(before) - set(after)),
        "added": sorted(line.split(" @ ")[0] for line in set(after) - set(before)),
        "banners": banners,
        "left_after_uninstall": left,
    }


def collect() -> list[dict[str, Any]]:
    """All releases, a fresh environment each."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        run(sys.executable, "-m", "build", "-q", "--wheel", "--outdir", temporary, results_page.ROOT)
        wheel = next(Path(temporary).glob("*.whl"))
        for verl in VERL:
            with tempfile.TemporaryDirectory() as environment:
                rows.append(examine(verl, wheel, Path(environment)))
            print(json.dumps(rows[-1], indent=1), flush=True)
    return rows


def render(document: dict[str, Any]) -> str:
    rows = document["rows"]
    lines = [
        "| verl | packages before | changed or removed | added | left after uninstall |",
        "|---|---|---|---|---|",
        *(
            f"| {row['verl']} | {row['packages_before']} | {', '.join(row['removed_or_changed']) or 'none'} | "
            f"{', '.join(row['added'])} | {', '.join(row['left_after_uninstall']) or 'nothing'} |"
            for row in rows
        ),
    ]
    banners = "\n".join(f"verl {row['verl']} {banner}" for row in rows for banner in row["banners"])
    return f"""
## pip install into a fresh environment

Each environment: Python {document["python"]}, `{document["torch"]}`, then the verl release from PyPI with all that it asks for, then this plugin's wheel. `python3.11 noxfile.py fresh` on {document["date"]}; {document["hardware"]}.

{chr(10).join(lines)}

What a driver and a Ray actor said after `import verl`, with the patches that the plugin had on that day:

```text
{banners}
```
"""  # noqa: E501


def main() -> None:
    if "--render" in sys.argv[1:]:
        document = json.loads((results_page.RESULTS / "fresh_install.json").read_text())
    else:
        facts = {"date": date.today().isoformat(), "python": sys.version.split()[0]}
        document = {**facts, "hardware": results_page.hardware(), "torch": TORCH, "rows": collect()}
    results_page.write("fresh_install", document, render(document))


if __name__ == "__main__":
    main()
