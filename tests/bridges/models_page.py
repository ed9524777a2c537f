"""docs/MODELS.md."""

from __future__ import annotations

from typing import Any

INTRODUCTION = """# Models

Generated, not typed: `{command}` makes this page and `results/models.json` again.

Whose Multi-Token Prediction a bridge between Hugging Face's weights and Megatron's can build and convert, as \
`verl-mtp models` says on each stack. The installed bridge is asked, with a toy config of the family: whether it would \
build the MTP layers which that config promises, and whether it has a name in the checkpoint for their weights. verl \
with this plugin asks a job's bridge the same before any weight loads, and stops the job where the answer is no. Run \
`verl-mtp models` for the stack that you have.

**yes** the bridge can. **yes\\*** it can with this plugin, which mends the bridge's class for the family. **no** the \
reason is below. Empty: the family has no sample config to ask with."""
NO_MTP = "it has no bridge class for this model"


def render(document: dict[str, Any]) -> str:
    """The whole page."""
    parts = [
        INTRODUCTION.format(**document),
        table(document),
        *others(document),
        "## Why not",
        f"Every family and stack for which the bridge *has* a class; everywhere else *{NO_MTP}*.",
        reasons(document),
        "## Mended by this plugin",
        mends(document),
        "Virtual pipelining with MTP needs Megatron-Bridge: mbridge does not tell MTP layers on which virtual stage "
        "they are, and is refused there.",
        "## Known since",
        "The first release of each bridge known to do a family's MTP, which the error messages advise.",
        since(document),
        "## Another family",
        "A package registers families of its own through the hook `verl_mtp_models`; they appear in the table of "
        "`verl-mtp models`. `python -c 'import verl_mtp_plugin.hookspecs as h; help(h)'` shows how.",
        f"Python {document['python']}, transformers {document['transformers']}. Real bridges and real megatron-core on "
        "a CPU; TransformerEngine and CUDA are stood in for (`verl_mtp_plugin/testing`), which no answer depends on. "
        "Megatron-Bridge from 0.4.2 on and megatron-core from 0.17 on declare Python 3.12: where this page is made on "
        "an older one, their wheels are installed all the same and `typing.override`, which only 3.12 has, is supplied "
        "(`verl_mtp_plugin/testing/megatron_bridge.py`); nothing else of Python is faked. "
        "`python3.11 noxfile.py newest` runs their tests on Python 3.12.",
    ]
    return "\n\n".join(parts) + "\n"


def table(document: dict[str, Any]) -> str:
    """One row per family, one column per stack."""
    heads = [f"{s['bridge']} {s['version']}, megatron-core {s['megatron_core']}" for s in document["stacks"]]
    lines = [row("family", "architectures", *heads), row(*("---" for _ in range(len(heads) + 2)))]
    for family in document["families"]:
        cells = [mark(stack["answers"][family["family"]]) for stack in document["stacks"]]
        architectures = "<br>".join(f"`{name}`" for name in family["architectures"])
        lines.append(row(family["family"], architectures, *cells))
    return "\n".join(lines)


def mark(cell: dict[str, Any]) -> str:
    if cell["state"] == "yes":
        return "yes\\*" if cell["mends"] else "yes"
    return "no" if cell["state"] == "no" else ""


def others(document: dict[str, Any]) -> list[str]:
    """Where a bridge asks for other releases of transformers than the one that was there."""
    found = [
        f"{stack['bridge']} {stack['version']} asks for transformers {stack['other_transformers']}"
        for stack in document["stacks"]
        if stack["other_transformers"]
    ]
    if not found:
        return []
    return [
        f"Asked with transformers {document['transformers']}, which verl 0.9 wants. {'; '.join(found)}: with one of "
        "those an AttributeError below may give way to another answer. It does for Qwen3-Next, which "
        "[comes back bit for bit](RESULTS.md#round-trips-of-weights) through 0.3.1 with transformers 4.57.6 and "
        "through 0.4.2 with 5.3.0."
    ]


def reasons(document: dict[str, Any]) -> str:
    """One row per family and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for family in (family["family"] for family in document["families"]):
        for stack in document["stacks"]:
            cell = stack["answers"][family]
            if cell["state"] == "no" and cell["detail"] != NO_MTP:
                where = f"{stack['bridge']} {stack['version']}, megatron-core {stack['megatron_core']}"
                found.setdefault((family, cell["detail"]), []).append(where)
    rows = [row(family, "<br>".join(where), escape(detail)) for (family, detail), where in found.items()]
    return "\n".join([row("family", "stacks", "reason"), row("---", "---", "---"), *rows])


def mends(document: dict[str, Any]) -> str:
    """One row per family and bridge."""
    found: dict[tuple[str, str], str] = {}
    for stack in document["stacks"]:
        for family, cell in stack["answers"].items():
            if cell["state"] == "yes" and cell["mends"]:
                sets = ", ".join(f"`{name}`" for name in cell["mends"])
                found[family, f"{stack['bridge']} {stack['version']}"] = sets
    rows = [row(family, bridge, sets) for (family, bridge), sets in found.items()]
    return "\n".join([row("family", "bridge", "patch sets (`verl-mtp doctor` says what each is for)"),
                      row("---", "---", "---"), *rows])  # fmt: skip


def since(document: dict[str, Any]) -> str:
    bridges = list(dict.fromkeys(stack["bridge"] for stack in document["stacks"]))
    rows = [
        row(family["family"], *(family["since"].get(bridge, "") for bridge in bridges))
        for family in document["families"]
    ]
    return "\n".join([row("family", *bridges), row(*("---" for _ in range(len(bridges) + 1))), *rows])


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
