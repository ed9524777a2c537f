"""verl's replicas, whose own methods decide which servers are called: what is made of the servers' answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any

import pytest

from verl_mtp_plugin.errors import UnsupportedError
from verl_mtp_plugin.rollout.replica import Paused, Released
from verl_mtp_plugin.rollout.verl_replica import CannotControlError, VerlReplica


class Handle:
    """A server's handle with these methods; an answer that is an exception is raised."""

    def __init__(self, log: list[str], name: str, **answers: Any) -> None:
        async def reply(method: str, answer: Any) -> Any:
            log.append(f"{name}.{method}")
            await asyncio.sleep(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        for method, answer in answers.items():

            def remote(*args: Any, method: str = method, answer: Any = answer) -> Awaitable[Any]:
                return reply(method, answer)

            setattr(self, method, SimpleNamespace(remote=remote))


class Rollout:
    """The replica of verl, with two servers and the controls that a test gives it."""

    replica_rank = 3

    def __init__(self, *servers: dict[str, Any], name: str = "sglang", **config: Any) -> None:
        self.log: list[str] = []
        self.servers = [Handle(self.log, str(i), **answers) for i, answers in enumerate(servers)]
        self.config = SimpleNamespace(name=name, **config)


class FirstOnly(Rollout):
    """One whose pause is for the first server alone, and says nothing."""

    async def abort_all_requests(self) -> None:
        await self.servers[0].abort_all_requests.remote()  # type: ignore[attr-defined]


class Printing(Rollout):
    """One whose controls call nobody."""

    async def abort_all_requests(self) -> None:
        return None

    async def resume_all_requests(self) -> None:
        return None


def test_the_replica_decides_who_is_called_and_the_answers_are_kept() -> None:
    answer = {"abort_all_requests": {"aborted": 2}}
    rollout = FirstOnly(answer, answer)
    assert asyncio.run(VerlReplica(rollout).pause()) == Paused(2)
    assert rollout.log == ["0.abort_all_requests"]
    assert VerlReplica(rollout).name == "replica 3"
    assert VerlReplica(rollout).key is rollout


def test_servers_are_called_directly_where_the_replica_calls_nobody() -> None:
    answers = {"abort_all_requests": {"aborted_count": 2, "aborted": 2}, "resume_generation": None}
    rollout = Printing(answers, answers)
    replica = VerlReplica(rollout)
    assert asyncio.run(replica.pause()) == Paused(4)
    asyncio.run(replica.resume_generation())
    assert rollout.log[2:] == ["0.resume_generation", "1.resume_generation"]


def test_what_vllm_servers_return_of_an_error_is_an_error() -> None:
    broken = {"abort_all_requests": {"aborted_count": 0, "error": "engine is dead"}}
    with pytest.raises(RuntimeError, match="engine is dead"):
        asyncio.run(VerlReplica(Rollout(broken, broken)).pause())


def test_an_engine_that_does_not_say_how_many() -> None:
    assert asyncio.run(VerlReplica(Rollout({"abort_all_requests": None})).pause()) == Paused(None)
    assert asyncio.run(VerlReplica(Rollout({"release_kv_cache": None})).release_kv()) == Released(None, 0.0)


def test_release_adds_up_and_waits_for_the_slowest() -> None:
    servers = [{"release_kv_cache": {"freed_bytes": n, "drain_s": n / 10, "released": ["kv_cache"]}} for n in (3, 5)]
    assert asyncio.run(VerlReplica(Rollout(*servers)).release_kv()) == Released(8, 0.5)


def test_all_servers_have_answered_before_an_error_is_raised() -> None:
    rollout = Rollout({"resume_kv_cache": ValueError("no room")}, {"resume_kv_cache": None})
    with pytest.raises(ValueError, match="no room"):
        asyncio.run(VerlReplica(rollout).resume_kv())
    assert rollout.log == ["0.resume_kv_cache", "1.resume_kv_cache"]


def test_no_such_control_at_all() -> None:
    with pytest.raises(CannotControlError, match="have none of release_kv_cache, sleep"):
        asyncio.run(VerlReplica(Rollout({})).release_kv())
    assert not VerlReplica(Rollout({})).can_pause
    assert not VerlReplica(Rollout()).can_pause


@pytest.mark.parametrize("free_cache_engine", [True, False])
def test_a_server_that_releases_its_cache_drains_in_that_call(free_cache_engine: bool) -> None:
    rollout = Rollout({"wait_for_requests_to_drain": None}, free_cache_engine=free_cache_engine)
    asyncio.run(VerlReplica(rollout).drain())
    assert rollout.log == ([] if free_cache_engine else ["0.wait_for_requests_to_drain"])
    asyncio.run(VerlReplica(Rollout({}, free_cache_engine=free_cache_engine)).drain())  # no such method


@pytest.mark.parametrize(("step", "version"), [(7, 7), (None, None), (AttributeError("no global_steps"), None)])
def test_the_version_is_the_step_of_the_first_server(step: Any, version: int | None) -> None:
    rollout = Rollout({"__ray_call__": step}, {"__ray_call__": 1})
    assert asyncio.run(VerlReplica(rollout).version()) == version
    assert asyncio.run(VerlReplica(Rollout({})).version()) is None


def test_retract_is_for_servers_that_can() -> None:
    rollout = Rollout({"abort_all_requests": None, "retract_all_requests": {"aborted": 0, "retracted": 5}})
    assert asyncio.run(VerlReplica(rollout, retract=True).pause()) == Paused(0)
    assert rollout.log == ["0.retract_all_requests"]
    with pytest.raises(UnsupportedError, match="the servers of Rollout have no retract_all_requests"):
        asyncio.run(VerlReplica(Rollout({"abort_all_requests": None}), retract=True).pause())


def test_only_sglang_stays_paused_when_its_cache_comes_back() -> None:
    assert VerlReplica(Rollout({})).stays_paused
    assert not VerlReplica(Rollout({}, name="vllm")).stays_paused
