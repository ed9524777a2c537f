"""The processes of pytest-xdist share what the releases have answered."""

from __future__ import annotations

import os

import pytest

from . import releases


@pytest.fixture(scope="session", autouse=True)
def shared_answers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder of this run that all its processes see."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        releases.Answers.folder = tmp_path_factory.getbasetemp().parent
