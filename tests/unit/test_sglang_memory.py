"""The guard before SGLang's memory calls, in virtual time: order, limits, and callers that stop waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_mtp_plugin.errors import WeightSyncError
from verl_mtp_plugin.rollout.sglang import memory
from verl_mtp_plugin.rollout.sglang.memory import memory_of

from .sglang_rules import KV, WEIGHTS, Manager
from .virtual_time import run

#: The defaults of the settings, in seconds.
DRAIN_S, CONTROL_S = 60.0, 60.0


async def _release(manager: Manager, *tags: str) -> None:
    await memory.release(Manager.release, manager, SimpleNamespace(tags=list(tags)))


async def _resume(manager: Manager, *tags: str) -> None:
    await memory.resume(Manager.resume, manager, SimpleNamespace(tags=list(tags)))


def _play(scenario: Callable[[Manager], Awaitable[None]], **options: Any) -> Manager:
    async def main() -> Manager:
        manager = Manager(**options)
        await scenario(manager)
        return manager

    manager = run(main())
    assert manager.death == ""
    return manager


def test_only_what_is_released_is_resumed_and_only_once() -> None:
    async def scenario(manager: Manager) -> None:
        await _resume(manager, KV, WEIGHTS)
        await _release(manager, KV)
        await _release(manager, KV, WEIGHTS)
        await _resume(manager, WEIGHTS)
        assert manager.is_pause
        await _resume(manager, KV, WEIGHTS)
        await _resume(manager, KV)

    manager = _play(scenario)
    messages = [message for message in manager.sent if message != "flush"]
    assert messages == [f"release {KV}", f"release {WEIGHTS}", f"resume {WEIGHTS}", f"resume {KV}"]
    assert not manager.is_pause


def test_a_busy_engine_is_waited_for_behind_a_closed_door() -> None:
    async def scenario(manager: Manager) -> None:
        running = asyncio.create_task(manager.generate(1, 20.0))
        await asyncio.sleep(1)
        releasing = asyncio.create_task(_release(manager, KV))
        await asyncio.sleep(1)
        late = asyncio.create_task(manager.generate(2, 1.0))
        await releasing
        assert running.done()
        assert 18 < memory_of(manager).drain_s < 20
        await asyncio.sleep(100)
        assert not late.done()
        await _resume(manager, KV)
        assert await late == "done"

    _play(scenario)


def test_an_engine_that_stays_busy_is_an_error_and_the_door_opens_again() -> None:
    async def scenario(manager: Manager) -> None:
        manager.unread = 1
        with pytest.raises(WeightSyncError, match=r"still busy after 60\.\d s"):
            await _release(manager, KV)
        manager.unread = 0
        assert await manager.generate(1, 1.0) == "done"

    assert not any(message.startswith("release") for message in _play(scenario).sent)


def test_a_second_release_that_fails_leaves_the_door_closed() -> None:
    async def scenario(manager: Manager) -> None:
        await _release(manager, KV)
        manager.unread = 1
        with pytest.raises(WeightSyncError, match="still busy"):
            await _release(manager, WEIGHTS)
        manager.unread = 0
        late = asyncio.create_task(manager.generate(1, 1.0))
        await asyncio.sleep(10)
        assert not late.done()
        await _resume(manager, KV)
        assert await late == "done"

    _play(scenario)


def test_a_door_that_verl_closed_stays_closed() -> None:
    async def scenario(manager: Manager) -> None:
        manager.is_pause = True
        await _release(manager, KV)
        await _resume(manager, KV)
        assert manager.is_pause

    _play(scenario)


def test_a_resume_ends_the_waiting_of_a_release() -> None:
    """Whoever resumes after an error in between wants to serve, not to wait a minute for an idle engine."""

    async def scenario(manager: Manager) -> None:
        loop = asyncio.get_running_loop()
        manager.unread = 1
        releasing = asyncio.create_task(_release(manager, KV))
        await asyncio.sleep(5)
        await _resume(manager, KV)
        assert loop.time() < 6
        with pytest.raises(WeightSyncError, match="still busy"):
            await releasing
        assert not manager.is_pause

    _play(scenario)


def test_a_release_whose_caller_left_goes_on_and_the_resume_waits_for_it() -> None:
    async def scenario(manager: Manager) -> None:
        releasing = asyncio.create_task(_release(manager, KV))
        await asyncio.sleep(11)  # drained, sent, not answered
        releasing.cancel()
        await asyncio.sleep(0)
        await _resume(manager, KV)
        assert manager.offloaded == set()

    manager = _play(scenario, latency=lambda message: 30.0 if message == "release" else 10.0)
    assert [message for message in manager.sent if message != "flush"] == [f"release {KV}", f"resume {KV}"]


def test_a_release_that_is_answered_too_late_is_still_taken_back() -> None:
    async def scenario(manager: Manager) -> None:
        with pytest.raises(WeightSyncError, match="no answer from SGLang to release within 120 s"):
            await _release(manager, KV)
        with pytest.raises(WeightSyncError, match="no answer from SGLang to the release before this resume"):
            await _resume(manager, KV)
        await _resume(manager, KV)
        assert manager.offloaded == set()
        assert memory_of(manager).released == set()

    _play(scenario, latency=lambda message: 200.0 if message == "release" else 0.01)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["release", "resume", "generate"]),
        st.sampled_from([(KV,), (WEIGHTS,), (KV, WEIGHTS)]),
        st.floats(0, 100),  # seconds until it begins
        st.none() | st.floats(0.1, 150),  # its caller's patience
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(operations=OPERATIONS, latencies=st.lists(st.floats(0, 90), min_size=1, max_size=20))
def test_no_order_of_calls_ends_the_engine(operations: list[Any], latencies: list[float]) -> None:
    """Whatever is asked, at whatever time, by callers that leave: the scheduler lives, and in the end all is back."""

    async def main() -> None:
        rest = iter(latencies)
        manager = Manager(lambda message: next(rest, 0.01))

        async def play(index: int, kind: str, tags: tuple[str, ...], begin: float, patience: float | None) -> str:
            await asyncio.sleep(begin)
            if kind == "generate":
                return await manager.generate(index, begin / 4)
            try:
                await asyncio.wait_for((_release if kind == "release" else _resume)(manager, *tags), patience)
            except (WeightSyncError, asyncio.TimeoutError):
                return "failed"
            return "done"

        tasks = [asyncio.create_task(play(index, *operation)) for index, operation in enumerate(operations)]
        await asyncio.sleep(3000)  # everything has been answered by now
        assert manager.death == ""
        manager.latency = lambda message: 0.01
        await _resume(manager, KV, WEIGHTS)
        assert manager.offloaded == memory_of(manager).released == set()
        assert not manager.is_pause
        assert {"done", "failed"} >= set(await asyncio.gather(*tasks))
        assert await manager.generate(-1, 1.0) == "done"
        assert manager.death == ""

    run(main())
