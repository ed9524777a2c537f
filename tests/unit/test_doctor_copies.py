"""The doctor where a package is a checkout, or cannot be imported: small packages with the real names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verl_mtp_plugin import imported

from .conftest import ROOT
from .third_party import HEAD, PACKAGES, hook, install, install_all

Write = Callable[[str, str], Path]


def doctor(*arguments: str, cwd: Path, paths: tuple[Path, ...] = ()) -> tuple[int, dict[str, Any], str]:
    """Exit status, findings and standard error of the console script, called in ``cwd``."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    environ["PYTHONPATH"] = os.pathsep.join(map(str, (*paths, ROOT)))
    # As the script in bin/ does, whose directory is the first entry of the path.
    code = "import sys; sys.path[0] = sys.prefix + '/bin'; from verl_mtp_plugin.cli.app import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "doctor", "--json", *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, cwd=cwd)
    return done.returncode, json.loads(done.stdout), done.stderr


def package(path: Path, distribution: str, files: dict[str, str], installed: str = "") -> Path:
    """A package, as an installed distribution of that version or as a checkout; importing it is an error."""
    name = imported.PACKAGES.get(distribution, distribution)
    folder = path.joinpath(*name.split("."))
    for file, text in {"__init__.py": "raise AssertionError('imported')\n", **files}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    if installed:
        info = path / f"{distribution.replace('-', '_')}-{installed}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {installed}\n")
    return folder


MEGATRON = "MAJOR = 0\nMINOR = 20\nPATCH = 0\nPRE_RELEASE = 'rc0'\n"
#: What a checkout of a package says of its version, and where.
CHECKOUTS: dict[str, tuple[dict[str, str], str]] = {
    "verl": ({"version/version": "0.10.0.dev\n"}, "0.10.0.dev"),
    "megatron-core": ({"package_info.py": MEGATRON}, "0.20.0rc0"),
    "megatron-bridge": ({"package_info.py": MEGATRON}, "0.20.0rc0"),
    "mbridge": ({"../pyproject.toml": '[project]\nname = "mbridge"\nversion = "0.16.0"\n'}, "0.16.0"),
    "sglang": ({"version.py": '__version__ = "0.5.24"\n'}, "0.5.24"),
    "vllm": ({"_version.py": "__version__ = version = '0.34.0.dev1'\n"}, "0.34.0.dev1"),
    "transformers": ({"__init__.py": '__version__ = "6.0.0.dev0"\nraise AssertionError\n'}, "6.0.0.dev0"),
}


def versions(findings: dict[str, Any]) -> dict[str, str | None]:
    return {item["name"]: item["version"] for item in findings["installed"]}


@pytest.mark.parametrize("way", ["working directory", "PYTHONPATH"])
def test_the_version_is_that_of_the_checkout(tmp_path: Path, way: str) -> None:
    site, clone = tmp_path / "site", tmp_path / "clone"
    for name, (files, _) in CHECKOUTS.items():
        package(site, name, {}, installed="0.1.2")
        package(clone, name, files)
    where = (
        {"cwd": clone, "paths": (site,)} if way == "working directory" else {"cwd": tmp_path, "paths": (clone, site)}
    )
    _, findings, _ = doctor(**where)  # type: ignore[arg-type]
    found = versions(findings)
    for name, (_, version) in CHECKOUTS.items():
        folder = clone.joinpath(*imported.PACKAGES.get(name, name).split("."))
        assert found[name] == findings["report"]["versions"][name] == version
        assert findings["checkouts"][name] == str(folder)
        assert f"{name} {version} is imported from {folder}, and not the installed 0.1.2" in findings["notes"]


def test_what_is_installed_has_the_version_of_its_metadata(tmp_path: Path) -> None:
    """Whatever its files say, and although a folder of that name lies in the working directory."""
    site = tmp_path / "site"
    for name, (files, _) in CHECKOUTS.items():
        if name != "mbridge":
            package(site, name, files, installed="0.1.2")
    (tmp_path / "verl").mkdir()  # where verl was cloned to
    _, findings, _ = doctor(cwd=tmp_path, paths=(site,))
    assert {versions(findings)[name] for name in CHECKOUTS if name != "mbridge"} == {"0.1.2"}
    assert findings["checkouts"].keys().isdisjoint(set(CHECKOUTS) - {"mbridge"})


def test_an_editable_installation_has_the_version_of_its_files(tmp_path: Path) -> None:
    """Its metadata tell when it was installed. Old ones lie beside the code as .egg-info."""
    site, clone = tmp_path / "site", tmp_path / "clone"
    package(clone, "verl", {"version/version": "0.10.0"})
    package(site, "verl", {}, installed="0.9.0")
    (site / "verl" / "__init__.py").unlink()
    package(clone, "sglang", {"version.py": '__version__ = "0.5.24"\n'})
    (clone / "sglang.egg-info").mkdir()
    (clone / "sglang.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.1\n")
    _, findings, _ = doctor(cwd=tmp_path, paths=(clone, site))
    assert (versions(findings)["verl"], versions(findings)["sglang"]) == ("0.10.0", "0.5.24")


CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
#: What importing a package of the stack does, and what the one problem says of it.
BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "torch, a library is missing": (
        {"torch": "raise OSError('libcudart.so.13: cannot open shared object file')"},
        "torch cannot be imported: OSError: libcudart.so.13: cannot open shared object file",
    ),
    "torch exits": ({"torch": "raise SystemExit(3)"}, "torch cannot be imported: SystemExit: 3"),
    "torch ends the process": ({"torch": CRASH}, "while it imported torch"),
    "verl": (
        {"verl": "raise ImportError('cannot import name x')"},
        "verl cannot be imported: ImportError: cannot import",
    ),
    "torch and verl": (
        {"torch": "raise RuntimeError('a\\n  long\\nstory')", "verl": "import torch"},
        "torch cannot be imported: RuntimeError: a long story",
    ),
    "megatron.core": (
        {"megatron.core": "raise RuntimeError('no apex')"},
        "megatron.core cannot be imported: RuntimeError",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_stack_that_cannot_be_imported_is_one_problem(tmp_path: Path, case: str) -> None:
    bodies, said = BROKEN[case]
    for name in ("torch", "verl", "megatron.core"):
        package(tmp_path / "site", name, {"__init__.py": bodies.get(name, "") + "\n"})
    status, findings, errors = doctor("--probe", cwd=tmp_path, paths=(tmp_path / "site",))
    (problem,) = findings["problems"]
    assert said in problem
    assert status == findings["status"] == 2
    assert "Traceback" not in errors + json.dumps(findings)
    assert not [note for note in findings["notes"] if "cannot import" in note and problem.partition(": ")[2] in note]


def test_modules_that_fail_for_one_reason_are_one_note(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("torch", "verl", "megatron.core"):
        package(site, name, {"__init__.py": ""})
    for name in ("trainer/constants_ppo", "workers/config/model", "utils/tracking"):
        (site / "verl" / name).parent.mkdir(parents=True, exist_ok=True)
        (site / "verl" / f"{name}.py").write_text("raise ImportError('hydra is too old')\n")
    _, findings, _ = doctor("--probe", cwd=tmp_path, paths=(site,))
    (note,) = [note for note in findings["notes"] if "hydra is too old" in note]
    assert note.endswith(" and 2 more: ImportError: hydra is too old")


def test_the_doctor_names_packages_at_fault(tmp_path: Path) -> None:
    install_all(tmp_path / "site")
    status, findings, _ = doctor(cwd=tmp_path, paths=(tmp_path / "site",))
    assert status == 1
    for name, fault in PACKAGES.items():
        (note,) = [note for note in findings["notes"] if f"({name} 1.0)" in note]
        assert note.startswith(f"plugin {name!r} from ")
        assert all(part in note for part in fault.said)
    (conflict,) = [note for note in findings["notes"] if "patch lab.f36 " in note or "(id_of_another_package" in note]
    assert "patch lab.healthy of plugin 'id_of_another_package'" in conflict


def test_the_doctor_names_a_patch_at_fault(tmp_path: Path) -> None:
    for name in ("torch", "verl", "megatron.core"):
        package(tmp_path / "site", name, {"__init__.py": ""})
    (tmp_path / "site" / "lab_target.py").write_text("def f1(): return 1\n")
    install(tmp_path / "site", "lab", HEAD + hook("[patch(1, decide=lambda e, m: None)]"))
    _, findings, _ = doctor("--probe", cwd=tmp_path, paths=(tmp_path / "site",))
    (note,) = [note for note in findings["notes"] if "lab.f1" in note]
    assert note.startswith("patch lab.f1 of plugin 'lab' from lab_hooks (lab 1.0) is failed: found decide of patch")
