"""verl's ``RolloutReplica`` in the form that the weight sync asks for."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Final

from ..errors import UnsupportedError
from .replica import Paused, Released
from .server_calls import ServerCalls


class CannotControlError(RuntimeError):
    """The installed verl has no such control for this rollout backend."""


#: verl's names of each control, the newest first; the last of the cache's is what verl 0.7.1 has on its replicas.
_ABORT: Final = "abort_all_requests"
_RETRACT: Final = "retract_all_requests"  # the plugin's, on SGLang's servers
_DRAIN: Final = ("mtp_drain", "wait_for_requests_to_drain")  # the plugin's, vLLM's
_HOLD: Final = "mtp_hold"  # the plugin's
_RELEASE: Final = ("release_kv_cache", "sleep")
_RESUME_KV: Final = ("resume_kv_cache", "wake_up")
_RESUME: Final = ("resume_generation", "resume_all_requests")


class VerlReplica:
    """verl's replica, through its own controls where it has them and through its servers where it has none."""

    def __init__(self, replica: Any, *, retract: bool = False) -> None:
        self._replica, self._retract = replica, retract

    @property
    def name(self) -> str:
        return f"replica {getattr(self._replica, 'replica_rank', '?')}"

    @property
    def key(self) -> object:
        return self._replica

    @property
    def stays_paused(self) -> bool:
        return getattr(self._replica.config, "name", "") == "sglang"

    @property
    def releases_kv(self) -> bool:
        """verl's ``free_cache_engine``."""
        return bool(getattr(self._replica.config, "free_cache_engine", True))

    @property
    def can_pause(self) -> bool:
        """Whether its servers can stop requests at all."""
        servers = self._replica.servers
        return bool(servers) and hasattr(servers[0], _ABORT)

    async def pause(self) -> Paused:
        """Abort or retract.

        Raises:
            UnsupportedError: its servers cannot retract.
        """
        if self._retract and not hasattr(self._replica.servers[0], _RETRACT):
            raise UnsupportedError(
                found=f"sync_requests=retract, but the servers of {type(self._replica).__name__} have no {_RETRACT}",
                expected="a rollout backend whose requests continue after a weight sync (SGLang)",
                advice="Set mtp.plugin.sync_requests=abort.",
            )
        answers = await self._control(_RETRACT if self._retract else _ABORT)
        for answer in _dicts(answers):
            if answer.get("error"):  # vLLM's servers return it and go on
                raise RuntimeError(str(answer["error"]))
        counts = [a.get("aborted", a.get("aborted_count")) for a in _dicts(answers)]
        return Paused(_total(counts))

    async def drain(self) -> None:
        """Only where the cache stays: a server that releases it waits until it is idle in that same call, and knows
        better than its engine which requests may still be on their way.
        """
        first = self._replica.servers[0]
        able = [name for name in _DRAIN if hasattr(first, name)]
        if able and not self.releases_kv:
            await getattr(first, able[0]).remote()

    async def release_kv(self) -> Released:
        answers = await self._control(*_RELEASE)
        freed = _total([answer.get("freed_bytes") for answer in _dicts(answers)])
        return Released(freed, max((float(a.get("drain_s") or 0.0) for a in _dicts(answers)), default=0.0))

    async def resume_kv(self) -> None:
        await self._control(*_RESUME_KV)

    async def resume_generation(self) -> None:
        await self._control(*_RESUME)

    async def hold(self, reason: str) -> None:
        able = [server for server in self._replica.servers if hasattr(server, _HOLD)]
        calls = ServerCalls(able)
        await calls.finish(asyncio.gather(*(getattr(server, _HOLD).remote(reason) for server in calls.servers)))

    async def version(self) -> int | None:
        """``global_steps`` of the first server: verl's worker sets it after its last weight has been loaded."""
        call = getattr(self._replica.servers[0], "__ray_call__", None)
        if call is None:
            return None
        try:
            step = await call.remote(attrgetter("global_steps"))
        except AttributeError:  # Ray raises it as a child of the original's class
            return None
        return None if step is None else int(step)

    async def _control(self, *names: str) -> list[Any]:
        """Call the first of these that the replica or its servers have; the answers of the servers.

        Raises:
            CannotControlError: neither has any of them.
        """
        calls = ServerCalls(self._replica.servers)
        view = copy.copy(self._replica)
        view.servers = calls.servers
        if getattr(view, "_server_handle", None) is not None:
            view._server_handle = calls.servers[0]
        for name in names:
            if hasattr(view, name):
                answers = await calls.finish(getattr(view, name)())
                if answers:
                    return answers
            able = [server for server in calls.servers if hasattr(server, name)]
            if able:  # the replica has no such method, or one that calls nobody
                return await calls.finish(asyncio.gather(*(getattr(server, name).remote() for server in able)))
        raise CannotControlError(f"{type(self._replica).__name__} and its servers have none of {', '.join(names)}")


def _dicts(answers: list[Any]) -> Iterator[dict[str, Any]]:
    return (answer for answer in answers if isinstance(answer, dict))


def _total(values: list[Any]) -> int | None:
    known = [int(value) for value in values if value is not None]
    return sum(known) if known else None
