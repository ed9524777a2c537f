"""Steps of a weight sync that come out of order, fail, or have nothing to do."""

from __future__ import annotations

import asyncio
from typing import Any

from .cases import CASES, LONG, ask, case, memory, step
from .server import Servers

__all__ = ["CASES"]  # all of them


@case
async def guards(servers: Servers) -> Any:
    """Steps out of order."""
    server = servers.make()
    running = asyncio.create_task(ask(server, "still", LONG))
    for _ in range(50):
        await asyncio.sleep(0)
    found: dict[str, Any] = {"release_while_serving": await step(server, "release_kv_cache")}
    found["resume_nothing"] = await step(server, "resume_kv_cache")
    found["untouched"] = memory(server)
    found["serves"] = await running
    await step(server, "abort_all_requests")
    found["release"] = [await step(server, "release_kv_cache") for _ in range(2)]
    found["serve_asleep"] = await step(server, "resume_generation")
    found["resume"] = [await step(server, "resume_kv_cache") for _ in range(2)]
    found["again"] = [await step(server, name) for name in ("release_kv_cache", "resume_kv_cache")]
    await step(server, "resume_generation")
    found["memory"] = memory(server)
    found["after"] = await ask(server, "after")
    return found


@case
async def failures(servers: Servers) -> Any:
    """An engine that cannot be paused, one that never drains, one whose weights do not come back at first."""

    async def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the engine said no")

    found: dict[str, Any] = {}
    server = servers.make()
    vars(server.engine)["pause_generation"] = fail
    found["pause"] = await step(server, "abort_all_requests")
    server = servers.make()
    await step(server, "abort_all_requests")
    server.engine.output_processor.request_states["stuck"] = asyncio.Queue()
    found["stuck"] = await step(server, "release_kv_cache")
    found["stuck_memory"] = memory(server)
    del server.engine.output_processor.request_states["stuck"]
    await step(server, "resume_generation")
    found["stuck_after"] = await ask(server, "after")
    server = servers.make()
    await step(server, "abort_all_requests")
    vars(server.engine)["wake_up"] = fail
    found["wake"] = await step(server, "release_kv_cache")
    del vars(server.engine)["wake_up"]
    found["wake_resume"] = await step(server, "resume_kv_cache")
    await step(server, "resume_generation")
    found["wake_memory"] = memory(server)
    found["wake_after"] = await ask(server, "after")
    further = servers.make(node_rank=1)
    names = ("abort_all_requests", "release_kv_cache", "resume_kv_cache", "resume_generation")
    found["further_node"] = [await step(further, name) for name in names]
    return found


@case
async def left_alone(servers: Servers) -> Any:
    """Servers whose cache stays where it is."""
    found = {}
    for name, server in {
        "free_cache_engine": servers.make(free_cache_engine=False),
        "enable_sleep_mode": servers.make(enable_sleep_mode=False),
        "colocated": servers.make("COLOCATED"),
    }.items():
        for control in ("abort_all_requests", "release_kv_cache", "resume_kv_cache", "resume_generation"):
            await step(server, control)
        found[name] = {**memory(server), "after": await ask(server, "after")}
    return found
