"""What the weight sync asks of a rollout replica."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Paused:
    """A server takes no requests."""

    aborted: int | None = None  # requests that ended for it; None: the engine does not say


@dataclass(frozen=True, slots=True)
class Released:
    """A server has given its KV cache back."""

    freed_bytes: int | None = None  # None: the engine does not say
    drain_s: float = 0.0  # part of the call that was waiting until idle


class Replica(Protocol):
    """A rollout server, on one or several nodes.

    Every method may raise or never answer. ``resume_kv`` on a server that released nothing and ``resume_generation``
    on one that is not paused change nothing; a call waits for one before it that is still running in the server.
    """

    @property
    def name(self) -> str:
        """For messages, such as ``replica 3``."""

    @property
    def key(self) -> object:
        """What the replica's state is remembered for."""

    @property
    def stays_paused(self) -> bool:
        """Whether mapping the cache leaves the engine paused. vLLM's scheduler starts with the last memory mapped."""

    async def pause(self) -> Paused:
        """Stop requests: abort or retract those in flight, hold back new ones."""

    async def drain(self) -> None:
        """Return when the engine is empty."""

    async def release_kv(self) -> Released:
        """Unmap the KV cache."""

    async def resume_kv(self) -> None:
        """Map the KV cache again."""

    async def resume_generation(self) -> None:
        """Take requests again."""

    async def hold(self, reason: str) -> None:
        """Refuse :meth:`resume_generation` from now on, whoever calls it; "" takes it back."""

    async def version(self) -> int | None:
        """Training step whose weights the server has; None: it does not say."""
