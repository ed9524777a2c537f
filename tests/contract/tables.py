"""The matrix as Markdown."""

from __future__ import annotations

from typing import Any

from .checks import CHECKS, Kind

BEGIN, END = "<!-- contract:begin -->", "<!-- contract:end -->"
SYMPTOM_LENGTH = 110


def insert(page: str, block: str) -> str:
    """``page`` with ``block`` between its markers; they are added at the end where the page has none."""
    if BEGIN not in page:
        page = (page or "# Results\n\nGenerated, not typed; each section names its command.\n") + f"\n{BEGIN}\n{END}\n"
    head, rest = page.split(BEGIN, 1)
    _, tail = rest.split(END, 1)
    return f"{head}{BEGIN}\n{block}\n{END}{tail}"


def render(document: dict[str, Any]) -> str:
    """The whole section."""
    required = sum(check.kind is Kind.REQUIRED for check in CHECKS)
    parts = [
        "## Contract matrix",
        "MTP training and log-prob recompute on real verl and real megatron-core: "
        f"{len(document['cells'])} pairs, each in a process of its own, {required} checks a cell. *With* is verl with "
        "this plugin; *without* is the same verl, the same models and the same checks, with the plugin never imported. "
        "*Plugin's own* checks make no sense without it (patched before activation, deactivation). The symptom is the "
        "first failing check's.",
        matrix(document),
        "### What is checked",
        "In how many cells each check passes. `not_asked`, `zero_depths` and `unpatched` models are ones that verl's "
        "own patch is not on: what fails there without the plugin is megatron-core's.",
        per_check(document, Kind.REQUIRED),
        "The plugin's own:",
        per_check(document, Kind.PLUGIN),
        f"Python {document['python']}, torch {document['torch']}, fp32, one process. megatron-core's local layer spec "
        "with stand-ins for `torch.cuda` (`verl_mtp_plugin/testing/cuda.py`): no TransformerEngine, no flash kernels. "
        f"{document['hardware']}. Made by `{document['command']}`; all details in `results/contract.json`.",
    ]
    return "\n\n".join(parts)


def matrix(document: dict[str, Any]) -> str:
    """One row per cell."""
    lines = [
        "| verl | megatron-core | with | plugin's own | without | first symptom without |",
        "|---|---|---|---|---|---|",
    ]
    for row in document["cells"]:
        on, off = row["on"], row["off"]
        scores = (score(on["required"]), score(on["plugin"]), score(off["required"]))
        symptom = first(off["required"]["failed"])
        if row["verl_import_error"]:
            symptom = cut(f"verl cannot be imported: {row['verl_import_error']}")
        lines.append("| " + " | ".join((row["verl"], row["megatron_core"], *scores, symptom)) + " |")
    return "\n".join(lines)


def per_check(document: dict[str, Any], kind: Kind) -> str:
    """One row per check of a kind."""
    lines = ["| check | what it asks | with | without |", "|---|---|---|---|"]
    cells = document["cells"]
    for check in CHECKS:
        if check.kind is not kind:
            continue
        counts = [
            f"{sum(check.name in row[mode][kind.value]['passed'] for row in cells)}/{len(cells)}"
            if all(kind.value in row[mode] for row in cells)
            else ""
            for mode in ("on", "off")
        ]
        lines.append("| " + " | ".join((f"`{check.name}`", check.says, *counts)) + " |")
    return "\n".join(lines)


def score(outcomes: dict[str, Any]) -> str:
    passed, failed = len(outcomes["passed"]), len(outcomes["failed"])
    return f"{passed}/{passed + failed}"


def first(failed: dict[str, str]) -> str:
    """The first failing check and what it said."""
    for name, detail in failed.items():
        return f"`{name}`: {cut(detail)}"
    return ""


def cut(text: str) -> str:
    text = text.replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= SYMPTOM_LENGTH else text[: SYMPTOM_LENGTH - 3].rstrip() + "..."
