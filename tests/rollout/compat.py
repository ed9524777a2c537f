"""Scenarios of :mod:`.test_compat`: does verl's server start on this SGLang, and can its client talk to it."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import verl_mtp_plugin
from verl_mtp_plugin.testing import sglang_engine

from . import names, servers
from .cluster import failure

RUST = "SGLANG_RUST_SERVER"


async def start() -> SimpleNamespace:
    servers.prepare()
    servers.without_ray()
    sglang_engine.on_death = lambda: None
    return SimpleNamespace(model=servers.model_config())


async def decisions(state: Any) -> dict[str, str]:
    from verl.workers.rollout.sglang_rollout import async_sglang_server  # noqa: F401

    records = verl_mtp_plugin.report().patches
    return {record.id: str(record.decision) for record in records if ".compat." in record.id}


async def missing(state: Any) -> list[str]:
    from verl.workers.rollout.sglang_rollout import async_sglang_server  # noqa: F401  (SGLang's modules in its order)

    return names.missing()


async def arguments(state: Any, mode: str, mtp: bool = False) -> dict[str, Any]:
    """What verl's server asks of SGLang, and a request."""
    from verl.workers.config.model import MtpConfig

    options = {"mtp": MtpConfig(enable=True, enable_rollout=True, speculative_algorithm="EAGLE")} if mtp else {}
    server = await servers.launch(state.model, mode, **options)
    args = sglang_engine.schedulers[-1].server_args
    wanted = ("enable_weights_cpu_backup", "enable_draft_weights_cpu_backup", "speculative_algorithm")
    return {**{name: getattr(args, name) for name in wanted}, "tokens": await servers.generate(server)}


async def client(state: Any) -> dict[str, Any]:
    """verl's own client against verl's own server, over HTTP."""
    from verl.workers.rollout.sglang_rollout.http_server_engine import AsyncHttpServerAdapter

    server = await servers.launch(state.model)
    host, port = server.get_server_address()
    made = AsyncHttpServerAdapter(model_path=state.model.local_path, host=host, port=port, launch_server=False)
    await made.release_memory_occupation(tags=["kv_cache"])
    await made.resume_memory_occupation(tags=["kv_cache"])
    calls = {
        "begin": made.begin_weight_update,
        "begin again": made.begin_weight_update,
        "end": made.end_weight_update,
        "end again": made.end_weight_update,
    }
    found = {name: await failure(call()) for name, call in calls.items()}
    return {**found, "messages": sglang_engine.schedulers[-1].messages, "tokens": await servers.generate(server)}


async def rust(state: Any) -> str:
    os.environ[RUST] = "1"
    try:
        return await failure(servers.launch(state.model))
    finally:
        del os.environ[RUST]


async def as_released(state: Any) -> dict[str, str]:
    """verl alone."""
    from verl.workers.rollout.sglang_rollout.http_server_engine import AsyncHttpServerAdapter

    async def make() -> None:
        AsyncHttpServerAdapter(model_path=state.model.local_path, launch_server=False)

    verl_mtp_plugin.deactivate()
    try:
        return {"server": await failure(servers.launch(state.model)), "client": await failure(make())}
    finally:
        verl_mtp_plugin.activate()


async def dies(state: Any) -> None:
    """A scheduler that dies while somebody waits for its answer."""
    from verl_mtp_plugin.testing import faults

    server = await servers.launch(state.model)
    faults.set_fault("generate", faults.Fault.DIE)
    try:
        await servers.generate(server)
    finally:
        faults.clear_faults()


async def ends(state: Any) -> None:
    os._exit(7)
