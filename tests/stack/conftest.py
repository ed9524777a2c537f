"""Fresh interpreters on the real packages; the plugin is installed in the environment that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract import stacks

RunStack = Callable[..., subprocess.CompletedProcess[str]]

#: Printed before what a test wants to read, since the imported packages print as they please.
MARK = "=> "


def results(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines that the code under test printed with :data:`MARK`."""
    return [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]


@pytest.fixture
def run_stack(tmp_path: Path) -> RunStack:
    """Run code in a fresh interpreter with releases on PYTHONPATH: ``run_stack(code, verl=VERL[-1])``."""

    def _run(
        code: str, *, check: bool = True, paths: tuple[Path, ...] = (), timeout: float = 300, **what: str
    ) -> subprocess.CompletedProcess[str]:
        releases = {k.replace("_", "-"): v for k, v in what.items() if k.islower()}
        env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_") or k == stacks.LAYERS_VARIABLE}
        parts = [*paths, *(stacks.layer(name, version) for name, version in releases.items())]
        env.update({k: v for k, v in what.items() if not k.islower()})
        env["PYTHONPATH"] = os.pathsep.join(map(str, parts))
        script = tmp_path / "under_test.py"
        script.write_text(textwrap.dedent(code))
        done = subprocess.run(
            [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=timeout, cwd=tmp_path
        )
        if check and done.returncode:
            raise AssertionError(f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
        return done

    return _run
