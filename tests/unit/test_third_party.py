"""One third party at fault is named and left out; the plugin and all other packages work on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Run
from .third_party import PACKAGES, PATCHES, install, install_all

REPORT = """
    import json, sys
    import verl_mtp_plugin
    from verl_mtp_plugin import runtime
    verl_mtp_plugin.activate()
    verl_mtp_plugin.activate()
    import {target}
    families = [family.name for family in runtime.models()]
    runtime.models()
    calls = {{name: getattr({target}, name)() for name in dir({target}) if name[0] in "fs"}}
    report = json.loads(verl_mtp_plugin.report().to_json())
    print(json.dumps({{"report": report, "calls": calls, "families": families}}))
"""


def ask(path: Path, target: str = "lab_target") -> dict[str, Any]:
    """What a process with the packages in ``path`` reports, and what it warned of."""
    import textwrap

    environ = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    environ["PYTHONPATH"] = os.pathsep.join([str(path), str(ROOT)])
    code = textwrap.dedent(REPORT.format(target=target))
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout), "warned": done.stderr.splitlines()}


@pytest.fixture(scope="module")
def everybody(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("site")
    install_all(path)
    return ask(path)


@pytest.fixture(scope="module")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("empty")
    (path / "lab_target.py").write_text("")
    return ask(path)


def plugins(found: dict[str, Any], distribution: str) -> list[dict[str, Any]]:
    return [plugin for plugin in found["report"]["plugins"] if f"({distribution} 1.0)" in plugin["source"]]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_at_fault_is_named_and_left_out(everybody: dict[str, Any], name: str) -> None:
    (plugin,) = plugins(everybody, name)
    assert plugin["name"] == name
    for part in PACKAGES[name].said:
        assert part in plugin["error"], plugin["error"]
    assert len(plugin["error"]) < 1200
    warned = [line for line in everybody["warned"] if f"({name} 1.0)" in line]
    assert warned == [f"verl-mtp-plugin: plugin {name!r} from {plugin['source']} is left out: {plugin['error']}"]
    assert not [patch for patch in everybody["report"]["patches"] if f"({name} 1.0)" in patch["package"]]


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_at_fault_is_named_with_its_package_and_left_out(everybody: dict[str, Any], name: str) -> None:
    _, decision, said = PATCHES[name]
    patches = [patch for patch in everybody["report"]["patches"] if f"({name} 1.0)" in patch["package"]]
    (bad,) = [patch for patch in patches if patch["decision"] != "applied"]
    assert bad["decision"] == decision
    assert bad["package"] == f"plugin {name!r} from {name}_hooks ({name} 1.0)"
    for part in said:
        assert part in bad["detail"]
    (warned,) = [line for line in everybody["warned"] if f" of {bad['package']} is " in line]
    assert bad["detail"] in warned
    good = f"f{40 + list(PATCHES).index(name)}"
    assert everybody["calls"][good] == ["patched", int(good[1:])]


def test_an_entry_point_called_like_ours_is_left_out(everybody: dict[str, Any]) -> None:
    (plugin,) = plugins(everybody, "called_like_ours")
    assert "found the entry point 'training' of called_like_ours_hooks (called_like_ours 1.0)" in plugin["error"]
    assert "one of verl-mtp-plugin's own" in plugin["error"]
    assert everybody["calls"]["f10"] == 10


def test_of_two_packages_with_one_entry_point_name_the_second_is_left_out(everybody: dict[str, Any]) -> None:
    """The second by the distributions' names, which is the same one on all nodes."""
    (first,), (second,) = plugins(everybody, "one_name_a"), plugins(everybody, "one_name_b")
    assert first["error"] == ""
    assert "the entry point 'one_name' of one_name_b_hooks (one_name_b 1.0)" in second["error"]
    assert "that of one_name_a_hooks (one_name_a 1.0)" in second["error"]
    assert (everybody["calls"]["f11"], everybody["calls"]["f12"]) == (["patched", 11], 12)


def test_all_others_work_on(everybody: dict[str, Any], nobody: dict[str, Any]) -> None:
    for number in (13, 14, 15):
        assert everybody["calls"][f"f{number}"] == ["patched", number]
    assert everybody["calls"]["shared"] == ["patched", 0]
    assert everybody["families"] == [*nobody["families"], "Lab"]
    ours = {patch["id"]: patch for patch in everybody["report"]["patches"] if not patch["package"]}
    assert ours == {patch["id"]: patch for patch in nobody["report"]["patches"]}
    assert everybody["report"]["active"]


def test_without_third_parties_nothing_is_said(nobody: dict[str, Any]) -> None:
    assert nobody["warned"] == []
    assert not [plugin for plugin in nobody["report"]["plugins"] if plugin["error"]]


def test_metadata_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    install_all(tmp_path)
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[verl_mtp_plugin]\nbroken\n")
    (tmp_path / "without_metadata-1.0.dist-info").mkdir()
    found = ask(tmp_path)
    (plugin,) = [plugin for plugin in found["report"]["plugins"] if plugin["name"] == "broken"]
    assert (plugin["source"], "reading its entry points failed" in plugin["error"]) == ("broken 1.0", True)
    assert found["calls"]["shared"] == ["patched", 0]


def test_ctrl_c_in_a_hook_is_the_users(tmp_path: Path, run: Run) -> None:
    body = "from verl_mtp_plugin.hookspecs import hookimpl\n@hookimpl\ndef verl_mtp_models(): raise KeyboardInterrupt\n"
    install(tmp_path / "modules", "slow", body)
    done = run("from verl_mtp_plugin import runtime; runtime.models()", check=False)
    assert done.stderr.strip().endswith("KeyboardInterrupt")


def test_strict_mode_stops_for_a_package_that_is_left_out(tmp_path: Path, run: Run) -> None:
    install(tmp_path / "modules", "strict_lab", "raise SystemExit(1)")
    code = """
        from verl_mtp_plugin import runtime
        from verl_mtp_plugin.job import gate
        runtime.activate()
        gate.refuse_broken()
    """
    assert run(code).returncode == 0
    done = run(code, check=False, VERL_MTP_PLUGIN="strict")
    assert "found plugin 'strict_lab' from strict_lab_hooks (strict_lab 1.0): loading it failed" in done.stderr


def test_with_the_plugin_off_nobody_is_imported(tmp_path: Path, run: Run) -> None:
    install(tmp_path / "modules", "off_lab", "print('imported')")
    code = """
        import verl_mtp_plugin
        from verl_mtp_plugin import runtime
        print(verl_mtp_plugin.activate().active, verl_mtp_plugin.report().plugins[-1].name)
        verl_mtp_plugin.activate({"mode": "off"})
        print(runtime.models()[0].name)  # somebody asks all the same
    """
    first, second, *_ = run(code, VERL_MTP_PLUGIN="off").stdout.splitlines()
    assert (first, second) == ("False models", "imported")
    assert run(code).stdout.splitlines()[:2] == ["imported", "True off_lab"]
