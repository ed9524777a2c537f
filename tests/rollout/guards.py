"""Scenarios of :mod:`.test_guards`: a server in this process releases, resumes, pauses; its scheduler may die."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import time
import urllib.request
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import verl_mtp_plugin
from verl_mtp_plugin.patching import PatchEngine
from verl_mtp_plugin.rollout.sglang import verl_compat
from verl_mtp_plugin.rollout.sglang.memory import memory_of
from verl_mtp_plugin.rollout.sglang.pause import message
from verl_mtp_plugin.settings import Mode, Settings
from verl_mtp_plugin.testing import faults, sglang_engine
from verl_mtp_plugin.testing.faults import Fault
from verl_mtp_plugin.view import View

from . import servers

Outcome = dict[str, Any]
#: Tokens of a request that lasts half a second.
LONG = 100
#: For what must come.
LIMIT_S = 60.0


class Warnings(logging.Handler):
    """Keeps what the plugin warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        logging.getLogger("verl_mtp_plugin").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


async def start() -> SimpleNamespace:
    servers.prepare()
    servers.without_ray()
    sglang_engine.on_death = lambda: None  # of a thread: nobody answers any more, and this process lives on
    return SimpleNamespace(model=servers.model_config(), warnings=Warnings())


async def _launch(state: Any, mode: str = "STANDALONE", **options: Any) -> tuple[Any, Any]:
    faults.clear_faults()
    state.warnings.texts.clear()
    for scheduler in sglang_engine.schedulers:
        scheduler.stopped = True
    server = await servers.launch(state.model, mode, **options)
    return server, sglang_engine.schedulers[-1]


def _seen(scheduler: Any, kind: str) -> int:
    """Messages of one kind that reached the scheduler."""
    return sum(message.startswith(kind) for message in scheduler.messages)


async def _failure(call: Awaitable[Any]) -> str:
    """The error that a call raises, with its class; "" if it raises none."""
    try:
        await call
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


async def _until(condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), LIMIT_S)


async def _start(server: Any, scheduler: Any, tokens: int = LONG, count: int = 1) -> list[asyncio.Task[list[int]]]:
    """Requests, each of which has its first token."""
    running = [asyncio.create_task(servers.generate(server, tokens)) for _ in range(count)]
    await _until(lambda: sum(bool(request.tokens) for request in scheduler.running_batch.reqs) == count)
    return running


# -- what is released is resumed -----------------------------------------------------------------------------------


async def release_and_resume(state: Any, names: list[str]) -> Outcome:
    server, scheduler = await _launch(state)
    release, resume = (getattr(server, name) for name in names)
    released, status = await release(), await server.mtp_status()
    again = await release()
    resumed = await resume()
    return {
        "released": released,
        "status": status,
        "again": again,
        "resumed": resumed,
        "saver": scheduler.memory_saver_adapter.calls,
        "tokens": await servers.generate(server),
    }


async def nothing_released(state: Any) -> Outcome:
    server, scheduler = await _launch(state)
    resumed = [await server.resume_kv_cache(), await server.wake_up()]
    return {
        "resumed": resumed,
        "messages": _seen(scheduler, "Resume"),
        "warned": sum("not released" in text for text in state.warnings.texts),
        "tokens": await servers.generate(server),
    }


async def kept_cache(state: Any) -> Outcome:
    """K2: ``free_cache_engine`` is off, so ``sleep`` releases nothing, and verl's ``wake_up`` resumes all the same."""
    server, scheduler = await _launch(state, free_cache_engine=False)
    outcome = {"released": await server.sleep(), "resumed": await _limited(server.wake_up(), scheduler)}
    return {**outcome, "messages": _seen(scheduler, "Resume"), "death": scheduler.death}


async def adapter(state: Any) -> Outcome:
    """K3: with a LoRA adapter ``sleep`` keeps the base weights; ``wake_up`` asks for them up to verl 0.9.0."""
    server, scheduler = await _launch(state, "COLOCATED")
    kind = type(server)
    if hasattr(kind, "lora_as_adapter"):
        server.__class__ = type("WithAdapter", (kind,), {"lora_as_adapter": True})
    outcome = {"released": await server.sleep(), "resumed": await _limited(server.wake_up(), scheduler)}
    return {**outcome, "left": sorted(scheduler.offload_tags), "death": scheduler.death}


async def _limited(call: Awaitable[Any], scheduler: Any) -> Any:
    """What the server answers; "no answer" if its scheduler has ended before it did."""
    task = asyncio.ensure_future(call)
    await _until(lambda: task.done() or bool(scheduler.death))
    if not task.done():
        await asyncio.wait({task}, timeout=0.3)
    return task.result() if task.done() else "no answer"


async def second_node(state: Any) -> Outcome:
    """Of a replica on two nodes: this server has no tokenizer manager."""
    server = await servers.launch(state.model, node_rank=1)
    names = ("abort_all_requests", "release_kv_cache", "resume_kv_cache", "resume_generation", "mtp_status")
    return {name: await getattr(server, name)() for name in names}


# -- idle before a release -----------------------------------------------------------------------------------------


async def busy_release(state: Any) -> Outcome:
    """A server that is put to sleep while it generates, and gets requests meanwhile."""
    server, scheduler = await _launch(state)
    (running,) = await _start(server, scheduler)
    releasing = asyncio.create_task(server.release_kv_cache())
    await _until(lambda: bool(server.tokenizer_manager.is_pause))
    late = [asyncio.create_task(servers.generate(server)) for _ in range(3)]
    released = await releasing
    later = asyncio.create_task(servers.generate(server))
    await asyncio.sleep(0.2)
    served_without_cache = [task.done() for task in (*late, later)]
    resumed = await server.resume_kv_cache()
    tokens = [len(await task) for task in (*late, later)]
    return {
        "running": len(await running),
        "drain_s": released["drain_s"],
        "resumed": resumed,
        "served_without_cache": served_without_cache,
        "tokens": tokens,
        "death": scheduler.death,
    }


async def late_result(state: Any, seconds: float) -> Outcome:
    """K6: the requests have been aborted, and a step of theirs is still in flight."""
    server, scheduler = await _launch(state)
    faults.set_fault("drain", Fault.BUSY)
    await server.abort_all_requests()
    asyncio.get_running_loop().call_later(seconds, faults.clear_faults)
    release = getattr(server, "release_kv_cache", server.sleep)
    released = await _limited(release(), scheduler)
    return {"released": released, "death": scheduler.death}


async def second_rank_busy(state: Any, seconds: float) -> Outcome:
    """Attention in data parallel: the first rank's scheduler is idle at once, another one's later."""
    server, scheduler = await _launch(state)
    ask, end = server.tokenizer_manager.flush_cache_communicator, time.monotonic() + seconds

    async def both_ranks(request: Any) -> list[Any]:
        (first,) = await ask(request)
        second = copy.copy(first)
        second.success = time.monotonic() >= end
        return [first, second]

    server.tokenizer_manager.flush_cache_communicator = both_ranks
    await server.abort_all_requests()
    return {"released": await server.release_kv_cache(), "death": scheduler.death}


async def paused_during_weights(state: Any, mtp: bool) -> Outcome:
    """A message of weights to a server that nobody has paused, and a pause while it is on its way."""
    server, _ = await _launch(state)
    manager = server.tokenizer_manager
    memory_of(manager).mtp = mtp

    async def slow(request: Any) -> list[Any]:
        await asyncio.sleep(0.5)
        return [SimpleNamespace(success=True, message="")]

    manager.update_weights_from_tensor_communicator = slow
    request = message("UpdateWeightsFromTensorReqInput", serialized_named_tensors=[], flush_cache=True)
    weights = asyncio.ensure_future(manager.update_weights_from_tensor(request, None))
    await asyncio.sleep(0.1)
    pause = asyncio.ensure_future(manager.pause_generation(message("PauseGenerationReqInput")))
    done, _ = await asyncio.wait({weights, pause}, timeout=5)
    if len(done) == 2:
        await server.resume_generation()
    return {"weights": weights in done, "pause": pause in done, "tokens": len(await servers.generate(server))}


async def never_idle(state: Any) -> Outcome:
    server, scheduler = await _launch(state)
    faults.set_fault("drain", Fault.BUSY)
    begin = time.monotonic()
    error = await _failure(server.release_kv_cache())
    seconds = time.monotonic() - begin
    faults.clear_faults()
    return {
        "error": error,
        "seconds": seconds,
        "status": await server.mtp_status(),
        "messages": _seen(scheduler, "Release"),
        "tokens": await servers.generate(server),
    }


# -- limits --------------------------------------------------------------------------------------------------------


async def deaf_abort(state: Any) -> Outcome:
    """SGLang does not end the requests that it is told to end."""
    server, scheduler = await _launch(state)
    faults.set_fault("abort", Fault.HANG)
    (running,) = await _start(server, scheduler, 6 * LONG)
    error = await _failure(server.abort_all_requests())
    faults.clear_faults()
    status, tokens = await server.mtp_status(), await servers.generate(server)
    return {"error": error, "status": status, "tokens": tokens, "running": len(await running)}


async def abort(state: Any) -> Outcome:
    server, scheduler = await _launch(state)
    running = await _start(server, scheduler, 100 * LONG, 3)
    answers = [await server.abort_all_requests(), await server.abort_all_requests()]
    late = asyncio.create_task(servers.generate(server))
    await asyncio.sleep(0.1)
    held = not late.done()
    await server.resume_generation()
    return {
        "answers": answers,
        "ended_early": [len(await task) < 100 * LONG for task in running],
        "held": held,
        "late": await late,
    }


async def as_in_git(state: Any) -> Outcome:
    """:func:`abort` with a server that cannot be paused, as those of verl's git before 0.7.1."""
    from verl.workers.rollout.sglang_rollout.async_sglang_server import SGLangHttpServer

    names = ("abort_all_requests", "resume_generation")
    verl_mtp_plugin.deactivate()
    known = {name: vars(SGLangHttpServer)[name] for name in names}
    for name in names:
        delattr(SGLangHttpServer, name)
    try:
        verl_mtp_plugin.activate()
        return await abort(state)
    finally:
        verl_mtp_plugin.deactivate()
        for name, method in known.items():
            setattr(SGLangHttpServer, name, method)
        verl_mtp_plugin.activate()


async def unanswered_release(state: Any) -> Outcome:
    server, _ = await _launch(state)
    faults.set_fault("release", Fault.HANG, 1)
    errors = [await _failure(call()) for call in (server.release_kv_cache, server.resume_kv_cache)]
    status, resume = await server.mtp_status(), await _failure(server.resume_generation())
    return {"errors": errors, "status": status, "resume": resume, "then": await server.mtp_status()}


async def generation_without_cache(state: Any) -> Outcome:
    server, _ = await _launch(state)
    await server.abort_all_requests()
    await server.release_kv_cache()
    refused = await _failure(server.resume_generation())
    request = asyncio.create_task(servers.generate(server))
    await asyncio.sleep(0.1)
    served, paused = request.done(), (await server.mtp_status())["paused"]
    await server.resume_kv_cache()
    still_paused = (await server.mtp_status())["paused"]
    return {"refused": refused, "served": served, "paused": [paused, still_paused], "tokens": await request}


async def over_http(state: Any) -> Outcome:
    """The route that verl's hybrid workers take: SGLang's own endpoints."""
    server, scheduler = await _launch(state)
    host, port = server.get_server_address()
    faults.set_fault("drain", Fault.BUSY)
    asyncio.get_running_loop().call_later(0.3, faults.clear_faults)

    def post(call: str, *tags: str) -> int:
        url, body = f"http://{host}:{port}/{call}_memory_occupation", json.dumps({"tags": tags}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)

    calls = [("release", "kv_cache", "weights"), ("resume", "weights"), ("resume", "weights"), ("resume", "kv_cache")]
    codes = [await asyncio.to_thread(post, *call) for call in calls]
    tokens = await servers.generate(server)
    return {"codes": codes, "saver": scheduler.memory_saver_adapter.calls, "tokens": tokens, "death": scheduler.death}


async def retract(state: Any) -> Outcome:
    """A request that is in flight during a whole sync but the weights."""
    server, scheduler = await _launch(state)
    (running,) = await _start(server, scheduler)
    outcome: Outcome = {"error": await _failure(_retract(server))}
    if outcome["error"]:
        outcome["status"] = await server.mtp_status()
    return {**outcome, "tokens": await running, "death": scheduler.death}


async def _retract(server: Any) -> None:
    assert await server.retract_all_requests() == {"aborted": 0, "retracted": 1}
    assert (await server.release_kv_cache())["released"] == ["kv_cache"]
    await server.resume_kv_cache()
    await server.resume_generation()


# -- without the plugin --------------------------------------------------------------------------------------------


async def as_released(state: Any, scenario: str, **arguments: Any) -> Outcome:
    """A scenario with verl and SGLang as they were released, but for what a server of the two needs to start."""
    play: Callable[..., Awaitable[Outcome]] = globals()[scenario]
    verl_mtp_plugin.deactivate()
    engine = PatchEngine()
    engine.arm(verl_compat.PATCHES)
    try:
        return await play(state, **arguments)
    finally:
        engine.revert_all()
        verl_mtp_plugin.activate()


# -- what is refused before a server starts --------------------------------------------------------------------------


async def launched(
    state: Any,
    requests: str = "abort",
    mode: str = "auto",
    sglang: Outcome | None = None,
    mtp: Outcome | None = None,
    job_has_mtp: bool = True,
    **options: Any,
) -> Outcome:
    """A server that may be refused: the error, and how many schedulers were started.

    Args:
        requests: the setting ``sync_requests``.
        mode: the plugin's.
        sglang: arguments of the engine (``engine_kwargs.sglang``).
        mtp: verl's MTP config, by which the server speculates.
        job_has_mtp: whether ``mtp.enable`` is on at all.
        options: of verl's rollout config.
    """
    from verl.workers.config.model import MtpConfig

    if mtp is not None:
        options["mtp"] = MtpConfig(enable=True, enable_rollout=True, **mtp)
    options["engine_kwargs"] = {"sglang": {**sglang_engine.ENGINE_KWARGS, **(sglang or {})}}
    model = state.model if job_has_mtp else servers.model_config(mtp=False)
    before = len(sglang_engine.schedulers)
    verl_mtp_plugin.activate(Settings(mode=Mode(mode), sync_requests=requests))
    try:
        error = await _failure(_launch_and_keep(state, model, **options))
    finally:
        verl_mtp_plugin.activate(Settings())
    started = len(sglang_engine.schedulers) - before
    for scheduler in sglang_engine.schedulers:
        scheduler.stopped = True
    return {"error": error, "started": started}


async def _launch_and_keep(state: Any, model: Any, **options: Any) -> None:
    """Its sockets hold messages that nobody reads: a server that is collected as garbage would wait for that."""
    vars(state).setdefault("kept", []).append(await servers.launch(model, **options))


async def retract_refused(state: Any, sampling: Outcome | None = None, engine: Outcome | None = None) -> Outcome:
    """A sync that begins with ``retract`` beside a request that it would rob, or in an engine that cannot."""
    server, scheduler = await _launch(state)
    manager = server.tokenizer_manager
    manager.server_args = View(manager.server_args, **(engine or {}))  # SGLang's own are read-only once it runs
    parameters = {"max_new_tokens": LONG, **(sampling or {})}
    running = asyncio.create_task(server.generate([1, 2, 3], parameters, "robbed"))
    await _until(lambda: any(request.tokens for request in scheduler.running_batch.reqs))
    error = await _failure(server.retract_all_requests())
    status = await server.mtp_status()
    return {"error": error, "paused": status["paused"], "tokens": len((await running).token_ids)}


async def retract_beside_grammar(state: Any) -> Outcome:
    """A request is in SGLang's grammar queue while others are retracted."""
    server, scheduler = await _launch(state)
    (running,) = await _start(server, scheduler)
    compiling = SimpleNamespace(rid="g", req_pool_idx=None, kv=SimpleNamespace(holds_kv=False))
    owner = scheduler if hasattr(type(scheduler), "move_ready_grammar_requests") else scheduler.grammar_manager
    owner.grammar_queue = [compiling]
    error = await _failure(_retract(server))
    return {"error": error, "kept": owner.grammar_queue == [compiling], "tokens": len(await running)}
