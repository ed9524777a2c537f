"""Environments and commands of this project.

    python3.11 noxfile.py              # everything that CI runs
    python3.11 noxfile.py quickstart   # the example

Without nox this file installs it into an environment of its own first; with nox, ``nox -s quickstart`` does the same.
Environments and the releases under test are cached by version in ``~/.cache/verl-mtp-plugin``
(``VERL_MTP_PLUGIN_CACHE`` moves it).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("VERL_MTP_PLUGIN_CACHE", Path.home() / ".cache" / "verl-mtp-plugin"))
LAYERS = CACHE / "layers"
LAYERS_VARIABLE = "VERL_MTP_LAYERS"  # where tests and examples look for them
REQUIREMENTS = ROOT / "tests" / "requirements"
#: megatron-core's and verl's releases all work with this one, and so does everything under tests/.
PYTHON = "3.11"
STACK_TESTS = ("tests/stack", "tests/bridges", "tests/contract")
ROLLOUT_TESTS = ("tests/rollout",)
#: The packages that import neither torch nor verl are also tested on these, where the machine has them.
OTHER_PYTHONS = ("3.10", "3.12", "3.13")
#: The newest that verl admits, and the only one that Megatron-Bridge from 0.4.2 on declares.
NEWEST_PYTHON = "3.12"
NEWEST_TESTS = (*STACK_TESTS, *ROLLOUT_TESTS, "tests/unit")
NOX = "nox==2026.10.20"  # the version of tests/requirements/lint.txt


def bootstrap() -> None:
    """Install nox into an environment of its own, and call it."""
    home = CACHE / "nox"
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", NOX], check=True)
    arguments = sys.argv[1:]
    chosen = ["-s", *arguments] if arguments and not arguments[0].startswith("-") else arguments
    os.execv(python, [str(python), "-m", "nox", "-f", __file__, *chosen])


if __name__ == "__main__":
    bootstrap()

import nox  # noqa: E402  (bootstrap() has to come first)

os.environ[LAYERS_VARIABLE] = str(LAYERS)
sys.path.insert(0, str(ROOT))
from tests.contract import stacks  # noqa: E402


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


ENVIRONMENTS = CACHE / f"envs-{_digest(*sorted(REQUIREMENTS.glob('*.txt')))}"
#: The environment that session ``layers`` makes; some gigabytes, so the sessions that need it share it.
STACK_PYTHON = ENVIRONMENTS / "layers" / "bin" / "python"
nox.needs_version = ">=2024.10.9"
nox.options.envdir = str(ENVIRONMENTS)
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "unit", "stack", "rollout"]


def _interpreter(version: str) -> str | None:
    """A Python of that version: on the path, or one that pyenv has installed and not put there."""
    if _runs(version):
        return shutil.which(f"python{version}")
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(versions.glob(f"{version}.*/bin/python"), key=lambda path: int(path.parts[-3].split(".")[2]))
    return str(found[-1]) if found else None


def _runs(version: str) -> bool:
    """Whether this machine has a working Python of that version (a version manager's shim may be there and fail)."""
    found = shutil.which(f"python{version}")
    return found is not None and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """ruff and mypy."""
    session.install("-q", "-r", str(REQUIREMENTS / "lint.txt"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session(python=[PYTHON, *(version for version in OTHER_PYTHONS if _runs(version))])
def unit(session: nox.Session) -> None:
    """What needs neither torch nor verl, on every Python that this machine has."""
    session.install("-q", "-r", str(REQUIREMENTS / "unit.txt"))
    session.install("-q", "-e", str(ROOT))
    session.run("pytest", "-q", "tests/unit", *session.posargs)


@nox.session(python=PYTHON)
def layers(session: nox.Session) -> None:
    """Install torch, all that the verl releases need, the releases themselves as layers, and the plugin."""
    done = Path(session.virtualenv.location) / "stack-installed"
    if not done.exists():
        # torch first and alone: what comes later must not pull another build of it.
        session.install("-q", "-r", str(REQUIREMENTS / "torch.txt"))
        session.install("-q", "-r", str(REQUIREMENTS / "stack.txt"), "-c", str(REQUIREMENTS / "constraints.txt"))
        done.touch()
    for distribution, version in stacks.LAYERS:
        # megatron-core >= 0.17 and Megatron-Bridge >= 0.4.2 declare Python >= 3.12; their wheels work on 3.11, with
        # which all releases can be tested. Session ``newest`` has the Python that they declare.
        _install_layer(session, LAYERS, distribution, version, "--ignore-requires-python")
    session.install("-q", "--no-deps", "-e", str(ROOT))
    session.log(f"{LAYERS_VARIABLE}={LAYERS} {STACK_PYTHON}")


def _install_layer(session: nox.Session, layers: Path, distribution: str, version: str, *options: str) -> None:
    """One release in a directory of its own, without what it depends on, to be put on PYTHONPATH."""
    target = layers / f"{distribution}-{version}"
    if target.is_dir():
        return
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    session.install("-q", "--no-deps", *options, "--target", str(partial), f"{distribution}=={version}")
    partial.rename(target)


def _run_in_stack(session: nox.Session, *arguments: str, path: str = "", **environ: str) -> None:
    environ |= {
        "PYTHONPATH": path,
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    session.run(str(STACK_PYTHON), *arguments, external=True, env=environ)


@nox.session(venv_backend="none", requires=["layers"])
def stack(session: nox.Session) -> None:
    """The real packages: loading, Ray, the contract matrix, the quickstart."""
    # Not session.create_tmp(), which moves TMPDIR to where Ray's socket paths become too long.
    with tempfile.TemporaryDirectory() as outcomes:
        chosen = session.posargs or STACK_TESTS
        pytest = ("-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", *chosen)
        _run_in_stack(session, *pytest, VERL_MTP_CONTRACT_OUT=outcomes)
        if not session.posargs:
            # The committed tables must be what this run has found.
            for tables in ("tests.contract.generate", "tests.contract.parallel.generate"):
                _run_in_stack(session, "-m", tables, "--check", "--from", outcomes)
            _run_in_stack(session, "-m", "tests.bridges.models_table", "--check")


@nox.session(venv_backend="none", requires=["layers"])
def rollout(session: nox.Session) -> None:
    """Weight syncs on verl's and SGLang's real servers, without a GPU."""
    # By file: the tests of one share processes that take seconds to start.
    chosen = session.posargs or ROLLOUT_TESTS
    _run_in_stack(session, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *chosen)


@nox.session(python=_interpreter(NEWEST_PYTHON) or NEWEST_PYTHON)
def newest(session: nox.Session) -> None:
    """The stack's and rollout's tests on Python 3.12, with the newest of all that the newest verl admits.

    Not in CI: for this Python PyPI has torch with CUDA only, 5.4 GB. Nothing is pinned, and no release is made to take
    a Python or a package that it does not declare.

    Run by hand on 2026-11-28 (Python 3.12.1, torch 2.14.1, transformers 5.10.4, Ray 2.60.0, NumPy 2.5.5): the contract
    cells of verl 0.9.1 on megatron-core 0.17.1 and 0.19.2, the engine with Megatron-Bridge 0.6.2, the doctor, the
    probes of all Megatron-Bridges, ``verl-mtp models``, vLLM's server tests and the unit tests, all as on Python 3.11.
    Cannot pass where torch is built with CUDA and there is no GPU: the scheduler of SGLang >= 0.5.21, which asks torch
    for its device, and megatron-core 0.15, which compiles for the GPU where it finds nvcc. The rest was not run.
    """
    layers = CACHE / f"layers-{NEWEST_PYTHON}"
    for distribution, version in stacks.LAYERS:
        _install_layer(session, layers, distribution, version)
    done = Path(session.virtualenv.location) / "stack-installed"
    if not done.exists():
        admitted = _requirements(layers / f"verl-{stacks.VERL[-1]}")
        session.install("-q", "torch")
        session.install("-q", "-r", str(REQUIREMENTS / "stack.txt"), *admitted)
        done.touch()
    session.install("-q", "--no-deps", "-e", str(ROOT))
    session.run("pip", "list", "--format=freeze", silent=False)
    environ = {LAYERS_VARIABLE: str(layers), "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
    pytest = ("pytest", "-q", "-n", "2", "--dist", "loadfile", *(session.posargs or NEWEST_TESTS))
    session.run(*pytest, env=environ | {"PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""})


def _requirements(layer: Path) -> list[str]:
    """What a release asks for, without its extras."""
    (metadata,) = layer.glob("*.dist-info/METADATA")
    asked = re.findall(r"^Requires-Dist: ([^;\n]+)(;.*)?$", metadata.read_text(), re.M)
    return [requirement.strip() for requirement, marker in asked if "extra" not in marker]


@nox.session(venv_backend="none", requires=["layers"])
def matrix(session: nox.Session) -> None:
    """Run the contract matrix with and without the plugin, and its two-process cells, and write docs/RESULTS.md."""
    _run_in_stack(session, "-m", "tests.contract.generate", *session.posargs)
    _run_in_stack(session, "-m", "tests.contract.parallel.generate", *session.posargs)


@nox.session(venv_backend="none", requires=["layers"])
def upstream(session: nox.Session) -> None:
    """The contract on a checkout of megatron-core's main or dev branch: ``upstream -- ~/Megatron-LM``."""
    _run_in_stack(session, "-m", "tests.contract.upstream", *session.posargs)


@nox.session(venv_backend="none", requires=["layers"])
def models(session: nox.Session) -> None:
    """Ask every bridge for every model family's MTP, and write docs/MODELS.md."""
    _run_in_stack(session, "-m", "tests.bridges.models_table", *session.posargs)


@nox.session(venv_backend="none", requires=["layers"])
def quickstart(session: nox.Session) -> None:
    """Train a tiny MiMo with MTP on the CPU, through verl's real Megatron engine."""
    _run_in_stack(session, "examples/quickstart/run.py", *session.posargs, path=stacks.quickstart_path())


@nox.session(venv_backend="none", requires=["layers"])
def import_time(session: nox.Session) -> None:
    """Measure what the plugin costs at interpreter start and at ``import verl``, and write docs/RESULTS.md."""
    _run_in_stack(session, "benchmarks/import_time.py", *session.posargs, path=str(ROOT))


@nox.session(python=PYTHON)
def fresh(session: nox.Session) -> None:
    """pip install into fresh environments with all that each verl release asks for (minutes and gigabytes each)."""
    session.install("-q", "-r", str(REQUIREMENTS / "unit.txt"))
    session.run("python", "benchmarks/fresh_install.py", *session.posargs)
