"""Renders all that a proof has left into docs/RESULTS.md.

python -m benchmarks.gpu.proof.report [FOLDER]

FOLDER is the proof's ``--results``, benchmarks/gpu/results by default; what upstream's scripts left is copied there.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from benchmarks import results_page
from benchmarks.gpu.costs import report as costs
from benchmarks.gpu.matrix import report as matrix
from benchmarks.gpu.rollout_speed import report as rollout_speed
from benchmarks.gpu.upstream import report as upstream
from benchmarks.gpu.upstream.session import RESULTS


def main() -> None:
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else RESULTS
    for kind in upstream.SECTIONS:
        file = folder / f"{kind}.json"
        if file.is_file() and folder != RESULTS:
            shutil.copy(file, RESULTS)
    upstream.main()
    if any((folder / "matrix").glob("*.json")):
        document = matrix.collect(folder / "matrix")
        results_page.write(matrix.NAME, document, matrix.render(document))
        print("matrix: written")
    if (folder / "rollout_speed" / "rollout_speed.json").is_file():
        rollout_speed.write(folder / "rollout_speed")
    file = folder / "costs" / "costs.json"
    if file.is_file():
        document = json.loads(file.read_text())
        if document["rehearsal"]:
            raise SystemExit(f"{file} is rehearsed, which is no result")
        results_page.write(costs.NAME, document, costs.render(document))
        print("costs: written")


if __name__ == "__main__":
    main()
