"""Small packages made on the fly, and fresh interpreters to import them in."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a module below the test's own import path."""

    def _write(name: str, body: str) -> Path:
        path = tmp_path / "modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(body))
        return path

    return _write


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run code in a fresh interpreter that sees the test's modules and this checkout."""

    def _run(code: str, *, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
        env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "modules"), str(ROOT)])
        env.update(environ)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=120
        )
        if check and done.returncode:
            raise AssertionError(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return _run
