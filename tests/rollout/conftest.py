"""One process per stack of releases for all tests of a module: importing verl and SGLang takes most of the time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .answers import Answers
from .host import Host
from .stacks import Stack

StartHost = Callable[..., Host]


@pytest.fixture(scope="session", autouse=True)
def shared_answers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder of this run that all processes of pytest-xdist see."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        Answers.folder = tmp_path_factory.getbasetemp().parent


@pytest.fixture(scope="module")
def start_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartHost]:
    """``start_host(stack, "tests.rollout.guards", **environ)``; one at a time, each ended before the next begins."""
    running: dict[tuple[object, ...], Host] = {}

    def _end() -> None:
        while running:
            running.popitem()[1].close()

    def _start(stack: Stack, module: str, **environ: str) -> Host:
        key = (stack, module, *environ.items())
        if key not in running:
            _end()
            # Ray's socket paths must be short.
            folder: Path = tmp_path_factory.mktemp("r")
            running[key] = Host(stack, module, folder, **environ)
        return running[key]

    yield _start
    _end()
