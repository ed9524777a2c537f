"""Write what ``verl-mtp models`` says on each stack to docs/results/models.json and, as a page, to docs/MODELS.md.

python -m tests.bridges.models_table            # ask all stacks, a process each
python -m tests.bridges.models_table --check    # write nothing; fail if what is committed says otherwise
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from tests.bridges import models_page
from tests.contract import stacks
from tests.contract.stacks import ROOT, layer
from verl_mtp_plugin.models.family import MBRIDGE, MEGATRON_BRIDGE

RESULTS = ROOT / "docs" / "results" / "models.json"
PAGE = ROOT / "docs" / "MODELS.md"
COMMAND = "python -m tests.bridges.models_table"
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Stack:
    """A bridge on a megatron-core that it can be imported with."""

    bridge: str
    version: str
    megatron_core: str

    def __str__(self) -> str:
        return f"{self.bridge} {self.version} on megatron-core {self.megatron_core}"


STACKS = (
    Stack(MBRIDGE, stacks.MBRIDGE[-1], stacks.MBRIDGE_CORE),
    Stack(MBRIDGE, stacks.MBRIDGE[-1], stacks.MEGATRON_CORE[-1]),
    *(Stack(MEGATRON_BRIDGE, *release) for release in stacks.BRIDGE_CORES.items()),
)


class StackError(RuntimeError):
    """The command did not answer."""


def ask(
    stack: Stack, *arguments: str, stand_ins: bool = True, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``verl-mtp models ARGUMENTS`` in a process that has this stack and no switch of verl's plugins or ours.

    Args:
        stack: what is installed.
        arguments: the command's.
        stand_ins: for CUDA and TransformerEngine.
        environment: more variables; a ``PYTHONPATH`` among them comes after the stack's.
    """
    given = dict(environment or {})
    paths = [layer(stack.bridge, stack.version), layer("megatron-core", stack.megatron_core)]
    path = os.pathsep.join((*map(str, paths), given.pop("PYTHONPATH", ""))).rstrip(os.pathsep)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VERL_", "PYTHONPATH"))}
    prepared = stack.bridge if stand_ins else "bare"
    command = [sys.executable, "-W", "ignore", "-m", "tests.bridges.models_worker", prepared, *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **given},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def table(stack: Stack) -> dict[str, Any]:
    """The command's answer on a stack.

    Raises:
        StackError: it failed, or a family that was asked about got no answer; with what it wrote last.
    """
    done = ask(stack, "--json")
    if done.returncode:
        raise StackError(f"{stack}: exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def collect() -> dict[str, Any]:
    """All stacks' answers in one document."""
    answers = [table(stack) for stack in STACKS]
    transformers = answers[0]["versions"]["transformers"]
    return {
        "command": COMMAND,
        "python": platform.python_version(),
        "transformers": transformers,
        "families": [{key: row[key] for key in ("family", "architectures", "since")} for row in answers[0]["families"]],
        "stacks": [
            {
                "bridge": stack.bridge,
                "version": stack.version,
                "megatron_core": stack.megatron_core,
                "other_transformers": other_transformers(stack, transformers),
                "answers": {row["family"]: row["bridges"][stack.bridge] for row in answer["families"]},
            }
            for stack, answer in zip(STACKS, answers, strict=True)
        ],
    }


def other_transformers(stack: Stack, installed: str) -> str:
    """The releases of transformers that a bridge asks for, where the installed one is none of them; else empty."""
    (distribution,) = (
        found
        for found in metadata.distributions(path=[str(layer(stack.bridge, stack.version))])
        if found.name == stack.bridge
    )
    wanted = [Requirement(line) for line in distribution.requires or ()]
    asked = [str(one.specifier) for one in wanted if one.name == "transformers" and installed not in one.specifier]
    return ", ".join(asked)


def check(found: dict[str, Any]) -> int:
    """Whether the committed results say the same, and the committed page shows them."""
    committed = json.loads(RESULTS.read_text())
    before, now = cells(committed), cells(found)
    problems = [
        f"{stack}, {family}: committed {before.get((stack, family))}, found {now.get((stack, family))}"
        for stack, family in sorted(before.keys() | now.keys())
        if before.get((stack, family)) != now.get((stack, family))
    ]
    if PAGE.read_text() != models_page.render(committed):
        problems.append(f"{PAGE.name} does not show what {RESULTS.name} holds")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"Run `{COMMAND}` and commit docs/.", file=sys.stderr)
    return 1 if problems else 0


def cells(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Every answer by stack and family."""
    return {
        (f"{stack['bridge']} {stack['version']} {stack['megatron_core']}", family): cell
        for stack in document["stacks"]
        for family, cell in stack["answers"].items()
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is committed instead of writing it")
    options = parser.parse_args(arguments)
    found = collect()
    if options.check:
        return check(found)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(models_page.render(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
