"""Whatever of upstream our code imports is listed by a patch, so that no patch says applied of a name that is gone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import verl_mtp_plugin
from verl_mtp_plugin.environment import Environment
from verl_mtp_plugin.patching import Needs
from verl_mtp_plugin.patching.patch import as_patch_set
from verl_mtp_plugin.plugins import Plugins

PACKAGE = Path(verl_mtp_plugin.__file__).parent
UPSTREAM = ("megatron", "verl", "mbridge", "sglang", "vllm")
ROOMS = ("training", "verl_fixes", "bridges", "job", "rollout")
#: Imports that no patch depends on, each with the reason.
GUARDED = {
    "mbridge:AutoBridge": "asked by `verl-mtp models` and in a refusal that is under way already",
    "mbridge.core.parallel_states:ParallelStates": "`verl-mtp models`, where every failure is an answer",
    "megatron.bridge:AutoBridge": "as mbridge's",
    "megatron.core.models.gpt.gpt_layer_specs:HAVE_TE": "mbridge.probe: what it cannot ask it leaves unknown",
    "megatron.core.parallel_state:set_pipeline_model_parallel_rank": "mbridge.probe",
    "megatron.core.parallel_state:set_pipeline_model_parallel_world_size": "mbridge.probe",
    "megatron.core.parallel_state:get_virtual_pipeline_model_parallel_world_size": "mbridge.probe",
    "megatron.core.parallel_state:set_virtual_pipeline_model_parallel_world_size": "mbridge.probe",
}


def patch_sets() -> list[object]:
    return [as_patch_set(item) for item in Plugins(()).patches(Environment())]


def listed() -> set[str]:
    """Every name in the patches' tables, and its owners: ``module:Class`` for ``module:Class.method``."""
    found: set[str] = set()
    for patch_set in patch_sets():
        for patch in patch_set.patches:  # type: ignore[attr-defined]
            needs: list[Needs | None] = [*patch.needs, *(need.otherwise for need in patch.needs)]
            for need in filter(None, needs):
                module, _, name = need.where.partition(":")
                steps = name.split(".")
                found |= {f"{module}:{'.'.join(steps[:n])}" for n in range(1, len(steps) + 1)} | {module}
            found.add(str(patch.target))
            found.add(patch.target.module)
    return found


def used(source: str) -> Iterator[str]:
    """``module:name`` of what is imported from upstream; of a module that is imported, the names taken from it."""
    tree = ast.parse(source)
    taken: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            base = node.value
            if isinstance(base, ast.Name):
                taken.setdefault(base.id, set()).add(node.attr)
            elif isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "upstream":
                yield f"megatron.core.transformer.multi_token_prediction:{node.attr}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] in UPSTREAM:
            for alias in node.names:
                if alias.name.islower():  # a module, or a function
                    attributes = taken.get(alias.asname or alias.name, set())
                    if attributes:
                        yield from (f"{node.module}.{alias.name}:{attribute}" for attribute in attributes)
                        continue
                yield f"{node.module}:{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in UPSTREAM)


def all_used() -> dict[str, str]:
    """What our rooms use, by name, with a file that uses it."""
    return {
        name: str(file.relative_to(PACKAGE))
        for room in ROOMS
        for file in sorted((PACKAGE / room).rglob("*.py"))
        for name in used(file.read_text())
    }


def test_the_reader_sees_names_modules_and_what_is_taken_from_them() -> None:
    source = """
def f():
    from megatron.core import parallel_state
    from megatron.core.utils import unwrap_model as unwrap
    from verl.utils import tensordict_utils
    import verl.trainer
    from torch import nn
    upstream().roll_tensor(unwrap(parallel_state.get_rank()))
    from megatron.core.transformer import multi_token_prediction
"""
    assert set(used(source)) == {
        "megatron.core.parallel_state:get_rank",
        "megatron.core.utils:unwrap_model",
        "verl.utils:tensordict_utils",
        "verl.trainer",
        "megatron.core.transformer.multi_token_prediction:roll_tensor",
        "megatron.core.transformer:multi_token_prediction",
    }


def test_everything_that_is_imported_from_upstream_is_in_a_patchs_table() -> None:
    known = listed()
    names = all_used()
    assert len(names) > 30  # the reader finds what there is
    modules = {name.replace(":", ".") for name in names if name.replace(":", ".") in known}
    missing = {name: where for name, where in names.items() if name not in known | GUARDED.keys()}
    missing = {name: where for name, where in missing.items() if name.replace(":", ".") not in modules}
    assert missing == {}, "list them in the room's needs.py, under each patch whose code uses them"


def test_nothing_is_excused_that_nobody_uses() -> None:
    assert set(GUARDED) <= set(all_used())


@pytest.mark.parametrize("room", ["training", "bridges", "rollout"])
def test_tables_name_patches_that_exist(room: str) -> None:
    table = __import__(f"verl_mtp_plugin.{room}.needs", fromlist=["NEEDS"]).NEEDS
    ids = {patch.id for patch_set in patch_sets() for patch in patch_set.patches}  # type: ignore[attr-defined]
    assert set(table) <= ids | {patch_set.id for patch_set in patch_sets()}  # type: ignore[attr-defined]
