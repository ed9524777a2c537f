"""Wheel, sdist and editable install: each loads the plugin, moves nothing else, and leaves nothing behind.

The environments are made for the test. What verl needs is seen through a folder of links to the environment that runs
the tests, all but the plugin, so that pip resolves against the real, installed stack; verl itself is a layer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.contract.stacks import ROOT, VERL, layer

#: What our wheel may bring along: its own requirements and theirs, and nothing of anybody's GPU stack.
LIGHT = {"markdown-it-py", "mdurl", "pluggy", "pygments", "rich", "verl-mtp-plugin", "wrapt"}

#: The second line: where the plugin was loaded from.
STATE = (
    "import verl, sys; r = sys.modules.get('verl_mtp_plugin.runtime'); "
    "print(verl.__version__, r.report().banner() if r else 'not loaded'); print(r and r.__file__)"
)


def call(*command: str | Path, cwd: Path | str = "/") -> str:
    """Not from this folder: ``python -c`` would import the checkout."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("VERL_", "PYTHONPATH"))}
    done = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, timeout=600, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist, built by the build backend from a copy of what is under version control or new."""
    source = tmp_path_factory.mktemp("source") / "verl-mtp-plugin"
    ignored = shutil.ignore_patterns(".git", ".nox", "__pycache__", ".*_cache", "quickstart-out", "*.egg-info", "dist")
    shutil.copytree(ROOT, source, ignore=ignored)
    out = tmp_path_factory.mktemp("dist")
    code = "import hatchling.build as b, sys; print(b.build_{0}(sys.argv[1]))"
    for kind in ("wheel", "sdist"):
        call(sys.executable, "-c", code.format(kind), out, cwd=source)
    return {
        "wheel": next(out.glob("*.whl")),
        "sdist": next(out.glob("*.tar.gz")),
        "editable": source,
    }


@pytest.fixture(scope="module")
def stack_view(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the environment that runs the tests, without the plugin."""
    view = tmp_path_factory.mktemp("stack")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "verl_mtp" not in entry.name:
            (view / entry.name).symlink_to(entry)
    return view


def make_environment(folder: Path, *paths: Path) -> Path:
    """A fresh environment that also sees the packages in ``paths``. Returns its Python."""
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    (site / "zz_stack.pth").write_text("".join(f"{path}\n" for path in paths))
    return python


def listing(python: Path) -> dict[str, str]:
    """Every distribution that pip sees, with its version."""
    listed = json.loads(pip(python, "list", "--format", "json"))
    return {item["name"].lower(): item["version"] for item in listed}


def files(folder: Path) -> set[str]:
    """Every file below ``folder``, compiled ones left out."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts and p.is_file()}


def pip(python: Path, *arguments: str | Path) -> str:
    return call(sys.executable, "-m", "pip", "--python", python, *arguments)


CASES = [("wheel", verl) for verl in VERL] + [(kind, verl) for kind in ("sdist", "editable") for verl in VERL[::3]]


@pytest.mark.parametrize(("kind", "verl"), CASES)
def test_install_load_uninstall(
    tmp_path: Path, distributions: dict[str, Path], stack_view: Path, kind: str, verl: str
) -> None:
    environment = tmp_path / "env"
    python = make_environment(environment, layer("verl", verl), stack_view)
    before, files_before = listing(python), files(environment)
    assert {"verl", "torch", "ray"} <= set(before)
    assert before["verl"] == verl
    assert call(python, "-c", STATE).split("\n")[0] == f"{verl} not loaded"

    # With dependency resolution: pip is free to move anything, and must not.
    target: list[str | Path] = ["-e", distributions[kind]] if kind == "editable" else [distributions[kind]]
    pip(python, "install", "-q", "--no-build-isolation", *target)
    after = listing(python)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"verl-mtp-plugin"}
    shown, where = call(python, "-c", STATE).splitlines()
    assert shown.startswith(f"{verl} verl-mtp-plugin 0.1.0 (auto)")
    assert where.startswith(str(distributions[kind] if kind == "editable" else environment))
    finders = call(python, "-c", "import sys; print([getattr(f, '__name__', '') for f in sys.meta_path])")
    assert finders.count("VerlMtpStartup") == 1
    assert (environment / "bin" / "verl-mtp").is_file()

    pip(python, "uninstall", "-q", "-y", "verl-mtp-plugin")
    assert listing(python) == before
    assert files(environment) == files_before
    assert call(python, "-c", STATE).split("\n")[0] == f"{verl} not loaded"


def test_what_the_wheel_brings_along_is_light(distributions: dict[str, Path], tmp_path: Path) -> None:
    """All that pip would install for it into an empty environment."""
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty")
    report = tmp_path / "report.json"
    pip(tmp_path / "empty" / "bin" / "python", "install", "-q", "--dry-run", "--report", report, distributions["wheel"])
    names = {item["metadata"]["name"].lower().replace("_", "-") for item in json.loads(report.read_text())["install"]}
    assert "verl-mtp-plugin" in names
    assert names <= LIGHT


def test_wheel_contents(distributions: dict[str, Path]) -> None:
    import zipfile

    names = set(zipfile.ZipFile(distributions["wheel"]).namelist())
    assert {"verl_mtp_plugin.pth", "_verl_mtp_startup.py", "verl_mtp_plugin/__init__.py"} <= names
    assert "verl_mtp_plugin/py.typed" in names
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    read = zipfile.ZipFile(distributions["wheel"]).read(entry_points).decode()
    for line in (ROOT / "entry_points.txt").read_text().splitlines():
        assert line in read
    assert not any(name.startswith(("tests/", "examples/", "benchmarks/")) for name in names)
