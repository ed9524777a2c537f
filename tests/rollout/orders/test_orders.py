"""Every order in which verl calls its SGLang servers, on the real ones: none fails with the plugin that works without.

With MTP, and without, where the plugin must not be noticed. SGLang's rules are real; batches and memory stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ..conftest import StartHost
from ..host import Host
from ..stacks import LATEST, PINNED, Stack
from .orders import ORDERS, OTHERS

STACKS = (*PINNED[:2], Stack("0.9.0", "0.5.8"), PINNED[2], LATEST)
LIMITS = {"VERL_MTP_PLUGIN_SYNC_DRAIN_TIMEOUT_S": "5", "VERL_MTP_PLUGIN_SYNC_CONTROL_TIMEOUT_S": "5"}
PLUGIN = ("mtp", "without mtp")
#: As SGLang says it; 0.5.22 and later answer that the update failed.
FLUSH = "scheduler ended: AssertionError: Cache flush failed after updating weights"


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest, start_host: StartHost) -> Host:
    return start_host(request.param, "tests.rollout.orders.play", **LIMITS)


def _on(
    *names: str,
    stacks: Sequence[Stack] = STACKS,
    pairs: Callable[[Stack], Sequence[tuple[Any, ...]]] = lambda stack: [()],
) -> pytest.MarkDecorator:
    """Parametrize ``host``, and with it what ``pairs`` gives for its stack, as tuples of ``names``."""
    rows = [(stack, *row) for stack in stacks for row in pairs(stack)]
    ids = ["-".join(map(str, row)) for row in rows]
    return pytest.mark.parametrize(("host", *names), rows, indirect=["host"], ids=ids)


#: Once for each release of SGLang.
BY_SGLANG = (*PINNED, LATEST)


def _orders(stack: Stack, *hows: str) -> list[tuple[str, ...]]:
    names = [name for name, order in ORDERS.items() if stack.verl in order.releases]
    return [(name, how) for name in names for how in hows]


def _known_as_released(stack: Stack) -> list[tuple[str, ...]]:
    """Orders in which upstream's engine is not asked to run without its memory."""
    return [row for row in _orders(stack, "bare") if stack.verl not in ORDERS[row[0]].generates_asleep]


def _others(stack: Stack, *hows: str) -> list[tuple[str, ...]]:
    return [(n, how) for n, steps in OTHERS.items() for how in hows if how != "bare" or stack.verl in steps.releases]


def _awake(one: dict[str, Any]) -> bool:
    return bool(one["unmapped"] == [] and one["request"] == "" and not any(one["waited"]) and one["death"] == "")


def _asleep(one: dict[str, Any]) -> bool:
    """It sleeps, and its memory comes back when its job takes it back."""
    back = (one.get("woken"), one.get("left"), one.get("request"), one["death"])
    return bool(one["unmapped"]) and back == ("", [], "", "")


@_on("name", "how", pairs=lambda stack: _orders(stack, *PLUGIN))
def test_verls_orders(host: Host, name: str, how: str) -> None:
    order, release = ORDERS[name], host.stack.verl
    found = host.play("play_order", name=name, release=release, how=how)
    if release in order.generates_asleep:
        first = found["wrong"][0]
        assert first[2] == "generate"
        # Without MTP it is upstream's: the engine runs without its memory.
        assert first[3] == "waits" if how == "mtp" else "unmapped" in first[3]
        return
    assert found["wrong"] == []
    for server, one in found["end"].items():
        assert (_asleep if server in order.asleep else _awake)(one), (server, one)


@_on("name", "how", stacks=PINNED, pairs=_known_as_released)
def test_verls_orders_as_released(host: Host, name: str, how: str) -> None:
    """What the plugin is compared with."""
    found = host.play("play_order", name=name, release=host.stack.verl, how=how)
    assert bool(found["wrong"]) is ORDERS[name].upstream_fails


@_on("name", "how", stacks=PINNED, pairs=lambda stack: _others(stack, *PLUGIN))
def test_repeated_and_displaced_calls(host: Host, name: str, how: str) -> None:
    found = host.play("play_other", name=name, how=how)
    assert found["wrong"] == []
    assert _awake(found["end"]["server"]), found


@_on("name", "how", stacks=PINNED, pairs=lambda stack: _others(stack, "bare"))
def test_repeated_and_displaced_calls_as_released(host: Host, name: str, how: str) -> None:
    found = host.play("play_other", name=name, how=how)
    assert bool(found["wrong"]) is OTHERS[name].upstream_fails


@pytest.mark.parametrize("paused", [True, False], ids=["paused", "open"])
@pytest.mark.parametrize("mode", ["HYBRID", "STANDALONE", "COLOCATED"])
@_on(stacks=BY_SGLANG)
def test_weights_wait_for_a_step_in_flight_where_the_cache_stays(host: Host, mode: str, paused: bool) -> None:
    for how in PLUGIN:
        found = host.play("busy_write", mode=mode, how=how, paused=paused)
        assert found["wrong"] == [], how
        assert found["end"]["server"]["request"] == ""
    if host.stack in PINNED:  # from 0.5.22 on SGLang answers that the update failed, and goes on
        bare = host.play("busy_write", mode=mode, how="bare", paused=paused)
        assert bare["wrong"][0][3] == FLUSH


@_on(stacks=BY_SGLANG)
def test_half_written_weights_are_served_to_nobody(host: Host) -> None:
    found = host.play("held")
    refused = "WeightSyncError: verl-mtp-plugin: found a server that is asked to generate, but its weights may be half"
    assert [said[: len(refused)] for said in found["said"]] == ["", "", refused, "", refused, "", ""]
    assert found["paused"]
