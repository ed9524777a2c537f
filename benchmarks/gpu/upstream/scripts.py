"""Finds upstream's example scripts, and says what of them the installed verl refuses."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HYBRID: Final = "run_mimo_7b_mtp_megatron.sh"
FULLY_ASYNC: Final = "run_mimo_7b_mtp_fully_async_megatron_multinode.sh"

#: Options of verl's Megatron engine config that a script may set and a later release has withdrawn.
WITHDRAWN: Final = ("grad_offload",)


class MissingScriptError(RuntimeError):
    """No folder given or searched has the example script."""


@dataclass(frozen=True)
class Script:
    """One of upstream's scripts. ``without`` are the lines left out of the copy that is run; none: it is as it was."""

    name: str
    path: Path
    sha256: str
    without: tuple[str, ...] = ()


def verl_home() -> Path:
    """The folder that holds the installed ``verl``. It is not imported: that would activate plugins here."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise MissingScriptError("verl is not installed here: put it on PYTHONPATH")
    return Path(next(iter(spec.submodule_search_locations))).parent


def find(name: str, examples: Path | None) -> Script:
    """The script ``name`` in ``examples`` (a file's folder, or a verl checkout), or beside the installed verl.

    Raises:
        MissingScriptError: none of them has it. verl's wheel brings no examples: they are in its repository.
    """
    roots = [examples] if examples else [verl_home()]
    for root in roots:
        for place in (root / name, root / "examples" / "mtp_trainer" / name, root / "mtp_trainer" / name):
            if place.is_file():
                return Script(name, place.resolve(), hashlib.sha256(place.read_bytes()).hexdigest())
    raise MissingScriptError(
        f"found no {name} in {', '.join(map(str, roots))}; give --examples: a checkout of verl, or the folder "
        "examples/mtp_trainer of one"
    )


def accepted_options() -> str:
    """The text of the installed verl's Megatron engine config."""
    file = verl_home() / "verl" / "trainer" / "config" / "engine" / "megatron.yaml"
    return file.read_text() if file.is_file() else ""


def trimmed(script: Script, folder: Path) -> Script:
    """A copy in ``folder`` without the lines that this verl refuses to parse, for runs with the plugin turned off.

    Where verl accepts all of them, ``script`` itself.
    """
    config = accepted_options()
    refused = [f".megatron.{name}=" for name in WITHDRAWN if f"\n{name}:" not in config]
    lines = script.path.read_text().splitlines(keepends=True)
    without = tuple(line.strip() for line in lines if any(option in line for option in refused))
    if not without:
        return script
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / script.name
    copy.write_text("".join(line for line in lines if line.strip() not in without))
    return Script(script.name, copy.resolve(), script.sha256, without)
