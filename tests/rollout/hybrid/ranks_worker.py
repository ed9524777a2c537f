"""verl's own hybrid worker and its ``ServerAdapter`` on two ranks, the second of which is slow to drop its weights.

    python -m tests.rollout.hybrid.ranks_worker on|off

Prints JSON: of each rank, when its weights were dropped and when its engine was asked for the KV cache, in seconds.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

#: How much later the second rank drops its weights.
SLOW_S = 0.7


class Engine:
    """The trainer's engine: it has no weights, and says when they were dropped."""

    is_param_offload_enabled = True

    def __init__(self, rank: int) -> None:
        self.rank, self.dropped = rank, 0.0

    def get_per_tensor_param(self, **kwargs: Any) -> tuple[Any, None]:
        return iter(()), None

    def to(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(SLOW_S * self.rank)
        self.dropped = time.monotonic()


class Client:
    """verl's HTTP client of the engine."""

    def __init__(self) -> None:
        self.resumed: dict[str, float] = {}

    async def resume_memory_occupation(self, tags: list[str]) -> None:
        self.resumed |= dict.fromkeys(tags, time.monotonic())


class Config(SimpleNamespace):
    """As much of verl's rollout config as is read."""

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


def make_worker(rank: int) -> Any:
    """The hybrid worker of one rank; rank 0 leads an engine on both."""
    from verl.workers.engine_workers import ActorRolloutRefWorker
    from verl.workers.rollout.sglang_rollout.sglang_rollout import ServerAdapter

    adapter = object.__new__(ServerAdapter)
    config = Config(name="sglang", checkpoint_engine=SimpleNamespace(backend="naive"), free_cache_engine=True)
    adapter.config, adapter._engine = config, Client() if rank == 0 else None
    adapter.device_mesh = {"infer_tp": SimpleNamespace(get_local_rank=lambda: rank)}
    adapter._pd_role, adapter._has_server, adapter.sleep_level = None, True, 2
    adapter.update_weights = _nothing_sent
    worker = object.__new__(ActorRolloutRefWorker)
    worker.config, worker.rollout = SimpleNamespace(rollout=config), adapter
    worker.actor = SimpleNamespace(engine=Engine(rank))
    worker.layered_summon, worker.peft_merge, worker.base_sync_done = False, False, True
    return worker


async def _nothing_sent(*args: Any, **kwargs: Any) -> None:
    return None


def rank_main(rank: int, folder: str) -> None:
    import torch

    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    worker = make_worker(rank)
    torch.distributed.barrier()
    asyncio.run(inspect.unwrap(type(worker).update_weights)(worker, global_steps=1))
    resumed = worker.rollout._engine.resumed if rank == 0 else {}
    Path(folder, str(rank)).write_text(json.dumps({"dropped": worker.actor.engine.dropped, "resumed": resumed}))
    torch.distributed.barrier()


def main() -> None:
    from verl_mtp_plugin.testing import sglang_engine

    sglang_engine.install()
    import torch
    import verl.workers.engine_workers as workers
    import verl.workers.rollout.sglang_rollout.sglang_rollout  # noqa: F401

    import verl_mtp_plugin
    from verl_mtp_plugin.settings import Mode, Settings

    report = verl_mtp_plugin.activate(Settings(Mode.OFF if sys.argv[1] == "off" else Mode.AUTO))
    decisions = {record.id: str(record.decision) for record in report.patches}
    # What there is of a GPU's memory.
    device = SimpleNamespace(empty_cache=lambda: None, synchronize=lambda: None)
    gpu: dict[str, Any] = {"get_torch_device": lambda: device}
    gpu |= dict.fromkeys(("aggressive_empty_cache", "log_gpu_memory_usage"), lambda *args, **kwargs: None)
    vars(workers).update({name: value for name, value in gpu.items() if hasattr(workers, name)})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # Forked: each rank would import for ten seconds.
        torch.multiprocessing.start_processes(rank_main, args=(folder,), nprocs=2, start_method="fork")
        ranks = [json.loads(Path(folder, str(rank)).read_text()) for rank in range(2)]
        print("=> " + json.dumps({"ranks": ranks, "patch": decisions.get("rollout.sglang.ranks")}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
