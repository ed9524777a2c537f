"""SGLang's own plugin loader reaches this plugin in the processes of a verl job.

``import sglang`` needs torchvision's CUDA build, so its packages are opened without running their ``__init__``; the
loader that runs is the real one. Patches in the scheduler come with the rollout work, and a GPU check with them.
"""

from __future__ import annotations

import pytest

from tests.contract.stacks import SGLANG_PINS, VERL

from .conftest import RunStack, results

LOAD = """
    import importlib.util, sys, types

    def open_package(name):
        package = types.ModuleType(name)
        package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
        sys.modules[name] = package

    for name in ("sglang", "sglang.srt"):
        open_package(name)
    from sglang.srt.plugins import load_plugins
    load_plugins()
    runtime = sys.modules.get("verl_mtp_plugin.runtime")
    print("=>", "verl" in sys.modules, bool(runtime and runtime.report().active))
"""


@pytest.mark.parametrize(
    ("child", "active"), [({"VERL_MTP_PLUGIN_CHILD": "1"}, True), ({}, False)], ids=["job", "alone"]
)
def test_scheduler_process(run_stack: RunStack, child: dict[str, str], active: bool) -> None:
    assert results(run_stack(LOAD, sglang=SGLANG_PINS[VERL[-1]], **child)) == [f"False {active}"]
