"""verl's real ``SGLangHttpServer`` on SGLang's real ``TokenizerManager``, in this process; the scheduler stands in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from verl_mtp_plugin.testing import sglang_engine

from .scenario import ABORTED, ALL, DRAFT_TOKENS, FINISHED


def prepare() -> None:
    """Stand-ins, before verl and SGLang are imported."""
    sglang_engine.install()
    import ray

    ray.util.get_node_ip_address = lambda: "127.0.0.1"  # without a Ray session


async def launch(model: Path, *, mtp: bool) -> Any:
    """A standalone server, with MTP rollout or without speculation."""
    from verl.workers.config import HFModelConfig, RolloutConfig
    from verl.workers.config.model import MtpConfig
    from verl.workers.rollout.replica import RolloutMode
    from verl.workers.rollout.sglang_rollout import async_sglang_server

    options = {
        "speculative_algorithm": "EAGLE",
        "speculative_num_steps": DRAFT_TOKENS - 1,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": DRAFT_TOKENS,
    }
    config = RolloutConfig(
        name="sglang",
        mtp=MtpConfig(enable=mtp, enable_rollout=mtp, **options),
        tensor_model_parallel_size=1,
        data_parallel_size=1,
        load_format="auto",
        dtype="float32",
        prompt_length=64,
        response_length=64,
        skip_tokenizer_init=True,
        enforce_eager=True,
        free_cache_engine=True,
        engine_kwargs={"sglang": dict(sglang_engine.ENGINE_KWARGS)},
    )
    server = async_sglang_server.SGLangHttpServer(
        config=config,
        model_config=HFModelConfig(path=str(model), trust_remote_code=False),
        rollout_mode=RolloutMode.STANDALONE,
        workers=[],
        replica_rank=0,
        node_rank=0,
        nnodes=1,
        cuda_visible_devices="0",
        base_gpu_id=0,
    )
    await server.launch_server()
    return server


def script_counts() -> None:
    """Let the stand-in scheduler report the scenario's counts, by the name that begins a request's id."""
    from verl_mtp_plugin.testing import sglang_scheduler

    original = vars(sglang_scheduler)["batch_output"]
    by_name = {request.name: request for request in ALL}

    def batch_output(request: Any, **_: Any) -> Any:
        counts = by_name[request.rid.partition(".")[0]]
        return original(request, verify_steps=counts.verify, accepted=counts.accepted)

    vars(sglang_scheduler)["batch_output"] = batch_output


async def ask(call: Awaitable[Any]) -> dict[str, Any]:
    """``extra_fields`` of what verl's server answers, or the error that it ends in."""
    try:
        output = await call
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"fields": dict(output.extra_fields), "reason": output.stop_reason, "tokens": len(output.token_ids)}


async def step(server: Any, scheduler: Any, run: str) -> dict[str, Any]:
    """One training step: the finished requests of the scenario, and one that an abort meets while it waits."""
    found = {}
    for request in FINISHED:
        parameters = {"max_new_tokens": request.tokens}
        found[request.name] = await ask(server.generate([3, 4, 5], parameters, f"{request.name}.{run}"))
    scheduler._engine_paused = True  # it takes requests and starts none
    waiting = asyncio.create_task(ask(server.generate([3, 4, 5], {"max_new_tokens": 8}, f"{ABORTED.name}.{run}")))
    while not scheduler.waiting_queue:
        await asyncio.sleep(0.01)
    await server.abort_all_requests()
    found[ABORTED.name] = await waiting
    scheduler._engine_paused = False
    await server.resume_generation()
    return found


async def meta_info(server: Any, name: str, run: str) -> dict[str, Any]:
    """What SGLang itself says of a request that does not come through verl's ``generate``."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    request = GenerateReqInput(rid=f"{name}.{run}", input_ids=[3, 4, 5], sampling_params={"max_new_tokens": 8})
    output = await server.tokenizer_manager.generate_request(request, None).__anext__()
    return {key: value for key, value in output["meta_info"].items() if "spec" in key}
