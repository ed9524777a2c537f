"""What a weight sync does to verl's vLLM server. Each case gives numbers and words that JSON can carry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from .server import Servers

CASES: dict[str, Callable[[Servers], Awaitable[Any]]] = {}
#: Tokens of a request that is still running when the server is paused: 5000 steps, each a turn of the event loop.
LONG = 20_000
#: What a good transfer leaves.
NEW = {"target": 2, "drafter": 2}


def case(function: Callable[[Servers], Awaitable[Any]]) -> Callable[[Servers], Awaitable[Any]]:
    CASES[function.__name__] = function
    return function


async def outcome(call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """What is returned, or the error."""
    try:
        return await call(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def ask(server: Any, name: str, tokens: int = 9) -> dict[str, Any]:
    """One request: how it ended, and which weights made its tokens."""
    output = await outcome(server.generate, [3, 4], {"max_tokens": tokens}, name)
    if isinstance(output, str):
        return {"error": output}
    fields = {key: value for key, value in output.extra_fields.items() if key.startswith("spec_")}
    return {"reason": output.stop_reason, "made_by": sorted(set(output.token_ids)), "fields": fields}


async def step(server: Any, name: str) -> Any:
    """One control of the server; None where it has none (verl 0.7.1)."""
    method = getattr(server, name, None)
    return None if method is None else await outcome(method)


def memory(server: Any) -> dict[str, Any]:
    core = server.engine.core
    return {"asleep": sorted(core.asleep), "weights": dict(core.weights), "calls": list(core.calls), "dead": core.dead}


async def _settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@case
async def sync(servers: Servers) -> Any:
    """A sync that goes well, with requests running before, and one that arrives in the middle."""
    server = servers.make()
    running = [asyncio.create_task(ask(server, f"running {i}", LONG)) for i in range(2)]
    await _settle()
    found: dict[str, Any] = {"pause": await step(server, "abort_all_requests")}
    found["running"] = [await task for task in running]
    found["release"] = await step(server, "release_kv_cache")
    found["released"] = memory(server)
    late = asyncio.create_task(ask(server, "late"))
    await _settle()
    server.engine.core.weights = {"target": 2, "drafter": 1}  # half-written
    found["resume"] = await step(server, "resume_kv_cache")
    found["resumed"] = memory(server)
    await _settle()
    found["late_waits"] = not late.done()
    server.engine.core.weights = dict(NEW)
    found["serve"] = await step(server, "resume_generation")
    found["late"] = await late
    found["after"] = await ask(server, "after")
    return found


@case
async def failed_sync(servers: Servers) -> Any:
    """Nothing is transferred; MTP is trained and does not draft, where verl 0.9.1 sleeps deepest."""
    server = servers.make(drafts=False)
    await step(server, "abort_all_requests")
    await step(server, "release_kv_cache")
    found: dict[str, Any] = {"released": memory(server)}
    await step(server, "resume_kv_cache")
    await step(server, "resume_generation")
    found["after"] = await ask(server, "after")
    return found


@case
async def on_their_way(servers: Servers) -> Any:
    """Requests that are past every door and not in the engine yet when the server is paused."""
    server = servers.make()
    tasks = [asyncio.create_task(ask(server, f"early {i}", LONG)) for i in range(3)]
    await asyncio.sleep(0)
    await step(server, "abort_all_requests")
    found: dict[str, Any] = {"release": await step(server, "release_kv_cache")}
    await _settle()
    found["released"] = memory(server)
    await step(server, "resume_kv_cache")
    await step(server, "resume_generation")
    found["early"] = [await task for task in tasks]
    return found


@case
async def hybrid_sleep(servers: Servers) -> Any:
    """A hybrid server sleeps, and everything is woken up before the trainer sends what it has."""
    found = {}
    for name, mtp in {"drafting": True, "plain": False}.items():
        server = servers.make("HYBRID", mtp=mtp)
        await server.sleep()
        await server.engine.wake_up(tags=["weights"])
        found[name] = memory(server)
    return found


@case
async def acceptance(servers: Servers) -> Any:
    """The counts that requests carry, and what the engine has counted."""
    found = {}
    for name, server in {"drafting": servers.make(), "plain": servers.make(mtp=False)}.items():
        together = await asyncio.gather(*(ask(server, f"{name} {i}", 5 + 4 * i) for i in range(4)))
        last = await ask(server, f"{name} last", 1)  # no verify step
        total = vars(server.engine.core.total)
        found[name] = {"requests": [*together, last], "engine": total, "loggers": len(server.engine.loggers)}
    with_stats = servers.make(disable_log_stats=False)
    found["with_stats"] = await ask(with_stats, "with_stats")
    return found
