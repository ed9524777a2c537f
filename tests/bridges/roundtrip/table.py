"""Run every round trip, and write docs/results/round_trip.json and its table in docs/RESULTS.md.

    python -m tests.bridges.roundtrip.table

What must come back is asserted in :mod:`.test_round_trip`; here it is counted.
"""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import torch
import transformers

from tests.contract.generate import PAGE, processor
from tests.contract.stacks import ROOT

from .cells import ROUND_TRIPS, Case, Stack
from .runner import run

RESULTS = ROOT / "docs" / "results" / "round_trip.json"
BEGIN, END = "<!-- round_trip:begin -->", "<!-- round_trip:end -->"
COMMAND = "python -m tests.bridges.roundtrip.table"


def collect() -> dict[str, Any]:
    """Each case's tensors, and whether all came back bit for bit and Megatron held what the checkpoint means."""
    stacks = [{"stack": str(stack), "cases": _cases(stack)} for stack in ROUND_TRIPS]
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"command": COMMAND, "hardware": processor(), **versions, "transformers": transformers.__version__} | {
        "stacks": stacks
    }


def _cases(stack: Stack) -> dict[str, Any]:
    found = run(stack)["cases"]
    return {str(Case.parse(text)): _outcome(found[str(Case.parse(text))]) for text in ROUND_TRIPS[stack]}


def _outcome(found: dict[str, Any]) -> dict[str, Any]:
    equal = not (found["error"] or found["different"] or found["wrong_in_megatron"] or found["unloaded"])
    return {"mtp_tensors": found["mtp_exported"], "bit_equal": equal}


def render(document: dict[str, Any]) -> str:
    """The section: a row for each stack."""
    rows = ["| stack | bit-equal | families and variants, `@1` one process, `@2` tensor parallel |", "|---|---|---|"]
    for entry in document["stacks"]:
        cases = entry["cases"]
        good = sum(case["bit_equal"] for case in cases.values())
        shown = ", ".join(f"`{name}`" + ("" if case["bit_equal"] else " **no**") for name, case in cases.items())
        rows.append(f"| {entry['stack'].replace('_', ', ')} | {good}/{len(cases)} | {shown} |")
    return "\n\n".join(
        (
            "## Round trips of weights",
            "A toy checkpoint of each family, every tensor random and every value another, from Hugging Face's names "
            "through the real bridge into real megatron-core and back, with the plugin's mends. Bit-equal: all tensors "
            "by name, type and bits; and every tensor of Megatron's MTP layer, gathered, is the one that the "
            "checkpoint means, so that two errors which cancel out show. `tied`: no lm_head; `copies`: with the copies "
            "of embedding and head that DeepSeek's layout has; `share`: tied in Megatron-Bridge's provider as well. "
            "Which cells end in an error instead is asserted in `tests/bridges/roundtrip/cells.py`.",
            "What is not as a user has it: Qwen3-Next's linear attention is a stand-in with the same parameters; "
            "MiMo's config class, which transformers has not, is registered by the test; and for Megatron-Bridge 0.3.1 "
            "and 0.4.2 the test gives Qwen3-Next's config class back what they read off it (`rope_theta`, "
            "`full_attention_interval`) and this transformers keeps elsewhere. Without that they cannot read the "
            'config, which is the "no" of [MODELS.md](MODELS.md). With the transformers that they ask for, 4.57.6 and '
            "5.3.0, Qwen3-Next comes back bit for bit with nothing given back: "
            "`tests/bridges/roundtrip/test_asked_transformers.py`.",
            "\n".join(rows),
            f"Python {document['python']}, torch {document['torch']}, transformers {document['transformers']}, bf16, "
            f"gloo, TransformerEngine stood in for. Megatron-Bridge from 0.4.2 on and megatron-core from 0.17 on "
            f"declare Python 3.12; on 3.11 `typing.override` is supplied. {document['hardware']}. Made by "
            f"`{document['command']}`; `results/round_trip.json`.",
        )
    )


def main() -> int:
    document = collect()
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    page = PAGE.read_text()
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n"
    head, rest = page.split(BEGIN, 1)
    PAGE.write_text(f"{head}{BEGIN}\n{render(document)}\n{END}{rest.split(END, 1)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
