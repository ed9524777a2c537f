"""A Ray session with a trainer and one SGLang replica of verl's, whose weights move through a file.

Everything that verl starts is its own: placement groups, ``init_standalone``, the checkpoint workers with their HTTP
clients, the server actor with SGLang in it. The trainer has a number for a model: its version.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
from types import SimpleNamespace
from typing import Any

from verl_mtp_plugin.testing import rollout_process
from verl_mtp_plugin.testing.sglang_scheduler import TOKENS_PER_VERSION

from . import servers

#: Three of them in buckets of 1 MiB: what was received so far has been written when the last one fails.
WEIGHT_BYTES = 700 << 10
WEIGHTS = ("first", "second", "third")


#: Variables of all processes of such a session, whose host is started with them.
ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "RAY_DEDUP_LOGS": "0"}


async def start() -> SimpleNamespace:
    servers.prepare()
    rollout_process.prepare()
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=4,
        include_dashboard=False,
        configure_logging=False,
        runtime_env={"worker_process_setup_hook": rollout_process.HOOK},
    )
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    from verl.workers.config import CheckpointEngineConfig

    from verl_mtp_plugin.testing import file_transfer as transfer

    names = {field.name for field in dataclasses.fields(CheckpointEngineConfig)}
    module = {"custom_backend_module": transfer.__name__} if "custom_backend_module" in names else {}
    config = CheckpointEngineConfig(backend=transfer.BACKEND, update_weights_bucket_megabytes=1, **module)
    state = SimpleNamespace(model=servers.model_config(), config=config, replicas=[], trainer=_make_trainer())
    state.replicas.append(await make_replica(state, 0))
    state.manager = make_manager(state)
    return state


def finish() -> None:
    import ray

    ray.shutdown()


async def make_replica(state: Any, rank: int) -> Any:
    """One more replica, standalone."""
    from verl.workers.rollout.replica import get_rollout_replica_class

    config = servers.rollout_config(checkpoint_engine=state.config)
    kind = get_rollout_replica_class("sglang")
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"  # verl's loader takes it away
    replica = kind(replica_rank=rank, config=config, model_config=state.model, gpus_per_node=1)
    await replica.init_standalone()
    return replica


def make_manager(state: Any) -> Any:
    from verl.checkpoint_engine.base import CheckpointEngineManager

    parameters = inspect.signature(CheckpointEngineManager.__init__).parameters
    trainer = {"actor_wg" if "actor_wg" in parameters else "trainer": state.trainer}
    return CheckpointEngineManager(config=state.config, replicas=state.replicas, **trainer)


def _make_trainer() -> Any:
    import ray
    import torch
    from verl.single_controller.base import Worker
    from verl.single_controller.base.decorator import Dispatch, register
    from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup

    class Trainer(Worker):
        def __init__(self) -> None:
            super().__init__()
            from verl_mtp_plugin.testing.file_transfer import FileTransfer

            self.engine = FileTransfer()

        @register(dispatch_mode=Dispatch.ONE_TO_ALL, blocking=False)  # type: ignore[untyped-decorator]
        async def update_weights(self, global_steps: Any = None, mode: str = "auto") -> None:
            weights = {name: torch.full((WEIGHT_BYTES // 4,), float(global_steps)) for name in WEIGHTS}
            await self.engine.send_weights(weights.items())

        @register(dispatch_mode=Dispatch.DP_COMPUTE, blocking=False)  # type: ignore[untyped-decorator]
        def execute_checkpoint_engine(self, method: str, *args: Any, **kwargs: Any) -> Any:
            return getattr(self.engine, method)(*args, **kwargs)

    pool = RayResourcePool([1], use_gpu=False, max_colocate_count=1)
    return RayWorkerGroup(pool, RayClassWithInitArgs(ray.remote(Trainer)), use_gpu=False)


async def generate(handle: Any, tokens: int = 4) -> Any:
    """One request to a server actor: the versions of the weights that made its tokens, and how it ended."""
    output = await handle.generate.remote([1, 2, 3], {"max_new_tokens": tokens}, os.urandom(8).hex())
    versions = sorted({token // TOKENS_PER_VERSION for token in output.token_ids})
    return {"versions": versions, "tokens": len(output.token_ids), "stop": output.stop_reason}


async def ids(handle: Any, tokens: int) -> list[int]:
    """The token ids of one request to a server actor."""
    output = await handle.generate.remote([1, 2, 3], {"max_new_tokens": tokens}, os.urandom(8).hex())
    return list(output.token_ids)


async def within(call: Any, seconds: float) -> Any:
    """What ``call`` returns; "no answer" if it does not in time."""
    try:
        return await asyncio.wait_for(call, seconds)
    except asyncio.TimeoutError:
        return "no answer"


async def failure(call: Any) -> str:
    """The error that a call raises, in one line with its class; "" if it raises none."""
    try:
        await call
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return ""
