"""verl's vLLM servers in every order of calls: none fails with the plugin that works without, with MTP and without."""

from __future__ import annotations

from typing import Any

import pytest

from ..orders.orders import ORDERS
from .processes import PAIRS, cases

PAIRED = pytest.mark.parametrize(("verl", "vllm"), PAIRS)


def orders(verl: str, vllm: str, which: str = "patched") -> dict[str, Any]:
    return dict(cases(verl, vllm)[which]["orders"])


def others(verl: str, vllm: str, which: str = "patched") -> dict[str, Any]:
    return dict(cases(verl, vllm)[which]["other_orders"])


@PAIRED
def test_every_order_of_this_verl_is_played(verl: str, vllm: str) -> None:
    assert set(orders(verl, vllm)) == {name for name, order in ORDERS.items() if verl in order.releases}


@PAIRED
def test_no_order_fails(verl: str, vllm: str) -> None:
    for name, order in ORDERS.items():
        if verl not in order.releases or verl in order.generates_asleep:
            continue
        for how, found in orders(verl, vllm)[name].items():
            assert found["wrong"] == [], (name, how)
            for server, one in found["end"].items():
                asleep = server in order.asleep and order.servers[server] != "STANDALONE"
                assert (bool(one["asleep"]), one["dead"]) == (asleep, ""), (name, how, server)
                assert one.get("request", "") == "", (name, how, server)


@PAIRED
def test_without_mtp_all_is_as_released(verl: str, vllm: str) -> None:
    """But that the newest vLLM can be paused at all."""
    bare, patched = ({**orders(verl, vllm, w), **others(verl, vllm, w)} for w in ("bare", "patched"))
    if (verl, vllm) == PAIRS[-1]:
        assert any("wait_for_inflight_requests" in str(found["plain"]["wrong"]) for found in bare.values())
        return
    assert {name: found["plain"] for name, found in patched.items()} == {n: f["plain"] for n, f in bare.items()}


@PAIRED
def test_repeated_and_displaced_calls(verl: str, vllm: str) -> None:
    """Whatever works as released works with the plugin; what ends the engine as released may."""
    for name, found in others(verl, vllm).items():
        for how, outcome in found.items():
            bare = others(verl, vllm, "bare")[name]["plain"]
            if not bare["wrong"] and not any(one["dead"] for one in bare["end"].values()):
                assert outcome["wrong"] == [], (name, how)
                assert all(one.get("request", "") == "" for one in outcome["end"].values()), (name, how)


@PAIRED
def test_weights_wait_for_requests_on_their_way_where_the_cache_stays(verl: str, vllm: str) -> None:
    found = cases(verl, vllm)["patched"]["cache_stays"]
    assert found["left"] == 0
    assert -2 not in found["made_by"]


@pytest.mark.parametrize(("verl", "vllm"), PAIRS[:2])
def test_as_released_they_run_on_half_written_weights(verl: str, vllm: str) -> None:
    assert cases(verl, vllm)["bare"]["cache_stays"]["left"] > 0


@PAIRED
def test_half_written_weights_are_served_to_nobody(verl: str, vllm: str) -> None:
    found = cases(verl, vllm)["patched"]["held"]
    assert found["refused"].startswith("WeightSyncError: verl-mtp-plugin: found replica 0, asked to serve, but its we")
    assert found["after"]["reason"] == "completed"
