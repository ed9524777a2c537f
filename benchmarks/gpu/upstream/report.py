"""Renders benchmarks/gpu/results/*.json of these runs into docs/RESULTS.md.

python -m benchmarks.gpu.upstream.report
"""

from __future__ import annotations

from typing import Any, Final

from benchmarks import results_page

from . import sections, store
from .session import RESULTS

#: Of a kind of run: how its section is made.
SECTIONS: Final = {
    "hybrid": sections.hybrid,
    "fully_async": sections.fully_async,
    "fully_async_4gpus": sections.fully_async,
    "acceptance": sections.acceptance,
    "isolation": sections.isolation,
}


def main() -> None:
    for kind, make in SECTIONS.items():
        document: dict[str, Any] = store.load(RESULTS / f"{kind}.json")
        if not document:
            print(f"{kind}: no results")
            continue
        if any(variant.get("rehearsed") for variant in document["variants"].values()):
            print(f"{kind}: rehearsed, which is no result")
            continue
        section, summary = make(document)
        results_page.write(f"gpu_{kind}", summary, section)
        print(f"{kind}: written")


if __name__ == "__main__":
    main()
