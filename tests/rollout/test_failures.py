"""What the weight sync of verl does as it was released: a server that hangs, and one that dies. Without the plugin."""

from __future__ import annotations

import pytest

from .cluster import ENVIRONMENT
from .conftest import StartHost
from .host import Host
from .stacks import PINNED

#: The releases between them are no others in this (see manager/test_manager.py and test_guards.py).
STACKS = (PINNED[0], PINNED[-1])


@pytest.fixture(scope="module", params=STACKS, ids=str)
def host(request: pytest.FixtureRequest, start_host: StartHost) -> Host:
    return start_host(request.param, "tests.rollout.syncs", **ENVIRONMENT, VERL_MTP_PLUGIN="off")


def test_a_good_sync_is_good(host: Host) -> None:
    """The stand-ins do what a sync needs."""
    assert host.play("sync", step=3, requests=1)["error"] == ""
    assert host.play("served") == {"request": {"versions": [3], "tokens": 4, "stop": "length"}}


def test_a_transfer_that_fails_once_leaves_the_server_paused(host: Host) -> None:
    """K1: the manager raises, and the next request waits for ever."""
    outcome = host.play("sync", step=4, faulty={"receive": ("fail", 1)})
    assert "asked to fail at receive" in outcome["error"]
    assert host.play("served", seconds=3.0) == {"request": "no answer"}


def test_a_late_result_ends_the_server(host: Host) -> None:
    """K6. The last test: there is no server after it."""
    outcome = host.play("sync", step=5, faulty={"drain": ("busy", None)})
    assert outcome["error"].startswith(("ActorDiedError", "RayTaskError", "ActorUnavailableError"))
