"""What this package knows of one ``vLLMHttpServer``, and its door for requests.

A paused engine of vLLM >= 0.24 takes requests and queues them, and runs them as soon as its memory is complete again,
whether or not anybody has resumed generation; one of 0.12 takes those that were on their way. So what keeps requests
from half-written weights is a door in front of the engine: verl 0.9.1 has one (``_park_until_admitted``), the earlier
releases get this one.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Final

from .. import acceptance


@dataclass
class Control:
    """Kept as an attribute of the server."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    memory: asyncio.Lock = field(default_factory=asyncio.Lock)  # one release or resume at a time
    inside: int = 0  # requests that are past the door
    asleep: list[str] = field(default_factory=list)  # vLLM's tags of memory that must be woken up
    wanted_open: bool = False  # generation was resumed while memory was asleep
    held: str = ""  # why its weights must not be served, whoever asks for it

    def __post_init__(self) -> None:
        self.open.set()


#: Seconds for requests that are past the door to reach the engine; who takes longer is waited for when it is drained.
BARRIER_S: Final = 5.0
_NAME: Final = "_mtp_plugin_control"
_INSIDE: Final[ContextVar[bool]] = ContextVar("verl_mtp_vllm_inside", default=False)


def control_of(server: Any) -> Control:
    """The server's control, made on first use."""
    control: Control = vars(server).setdefault(_NAME, None) or Control()
    setattr(server, _NAME, control)
    return control


def uses_mtp(server: Any) -> bool:
    """Whether this server's job uses MTP; otherwise its calls are upstream's."""
    return acceptance.uses_mtp(server.config, server.model_config)


def name_of(server: Any) -> str:
    """For messages."""
    return f"replica {getattr(server, 'replica_rank', '?')}"


def has_door(server: Any) -> bool:
    """Whether verl itself holds requests back while the server is paused (0.9.1)."""
    return hasattr(server, "_park_until_admitted")


def pauses_in_core(engine: Any) -> bool:
    """Whether a paused engine accepts requests and queues them; before, ``AsyncLLM.generate`` itself waited."""
    pause = getattr(engine, "pause_generation", None)  # from vLLM 0.12
    return pause is not None and "mode" in signature(pause).parameters


async def admitted(server: Any, call: Any) -> Any:
    """Run ``call()`` once the door is open. A request that one inside makes (a prefill leg) does not wait again."""
    if _INSIDE.get():
        return await call()
    control = control_of(server)
    while not (has_door(server) or control.open.is_set()):
        await control.open.wait()
    token = _INSIDE.set(True)
    control.inside += 1
    try:
        return await call()
    finally:
        control.inside -= 1
        _INSIDE.reset(token)


async def close(server: Any) -> None:
    """Let nobody in any more, and those who are in as far as the engine, where the pause that follows meets them."""
    control = control_of(server)
    control.wanted_open = False
    if has_door(server):
        return
    control.open.clear()
    deadline = time.monotonic() + BARRIER_S
    while len(server.engine.output_processor.request_states) < control.inside and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


def is_closed(server: Any) -> bool:
    """Whether requests wait outside."""
    return bool(server._submission_paused) if has_door(server) else not control_of(server).open.is_set()


def busy(server: Any) -> bool:
    """Whether a request is in the engine, or can still get there."""
    on_their_way = server._admitting if has_door(server) else control_of(server).inside
    return on_their_way > 0 or server.engine.output_processor.has_unfinished_requests()
