"""verl's own hybrid worker and its ``ServerAdapter`` on two ranks, the second of which is slow to drop its weights.

    python -m tests.rollout.hybrid.ranks_worker [off] on

Prints JSON: without and with the plugin, of each rank, when its weights were dropped and when its engine was asked for
the KV cache, in seconds.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

#: How long the second rank keeps its weights while nobody asks for the cache; without the plugin somebody does.
SLOW_S = {"on": 1.0, "off": 60.0}


class Engine:
    """The trainer's engine: it has no weights, and says when they were dropped."""

    is_param_offload_enabled = True

    def __init__(self, asked: Path, slow_s: float) -> None:
        self.dropped, self.asked, self.slow_s = 0.0, asked, slow_s

    def get_per_tensor_param(self, **kwargs: Any) -> tuple[Any, None]:
        return iter(()), None

    def to(self, *args: Any, **kwargs: Any) -> None:
        end = time.monotonic() + self.slow_s
        while time.monotonic() < end and not self.asked.exists():
            time.sleep(0.01)
        self.dropped = time.monotonic()


class Client:
    """verl's HTTP client of the engine."""

    def __init__(self, asked: Path) -> None:
        self.resumed: dict[str, float] = {}
        self.asked = asked  # a file that is there once it was asked for the cache

    async def resume_memory_occupation(self, tags: list[str]) -> None:
        self.resumed |= dict.fromkeys(tags, time.monotonic())
        if "kv_cache" in tags:
            self.asked.touch()


class Config(SimpleNamespace):
    """As much of verl's rollout config as is read."""

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


def make_worker(rank: int, asked: Path, slow_s: float) -> Any:
    """The hybrid worker of one rank; rank 0 leads an engine on both."""
    from verl.workers.engine_workers import ActorRolloutRefWorker
    from verl.workers.rollout.sglang_rollout.sglang_rollout import ServerAdapter

    adapter = object.__new__(ServerAdapter)
    config = Config(name="sglang", checkpoint_engine=SimpleNamespace(backend="naive"), free_cache_engine=True)
    adapter.config, adapter._engine = config, Client(asked) if rank == 0 else None
    adapter.device_mesh = {"infer_tp": SimpleNamespace(get_local_rank=lambda: rank)}
    adapter._pd_role, adapter._has_server, adapter.sleep_level = None, True, 2
    adapter.update_weights = _nothing_sent
    worker = object.__new__(ActorRolloutRefWorker)
    worker.config, worker.rollout = SimpleNamespace(rollout=config), adapter
    worker.actor = SimpleNamespace(engine=Engine(asked, slow_s))
    worker.layered_summon, worker.peft_merge, worker.base_sync_done = False, False, True
    return worker


async def _nothing_sent(*args: Any, **kwargs: Any) -> None:
    return None


def rank_main(rank: int, folder: str, slow_s: float) -> None:
    import torch

    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    worker = make_worker(rank, Path(folder, "asked"), slow_s * rank)
    torch.distributed.barrier()
    asyncio.run(inspect.unwrap(type(worker).update_weights)(worker, global_steps=1))
    resumed = worker.rollout._engine.resumed if rank == 0 else {}
    Path(folder, str(rank)).write_text(json.dumps({"dropped": worker.actor.engine.dropped, "resumed": resumed}))
    torch.distributed.barrier()


def main() -> None:
    from verl_mtp_plugin.testing import cuda, sglang_engine

    sglang_engine.install()
    import torch
    import verl.workers.engine_workers as workers
    import verl.workers.rollout.sglang_rollout.sglang_rollout  # noqa: F401

    import verl_mtp_plugin
    from verl_mtp_plugin.settings import Mode, Settings

    # What there is of a GPU's memory.
    device = SimpleNamespace(empty_cache=lambda: None, synchronize=lambda: None)
    gpu: dict[str, Any] = {"get_torch_device": lambda: device}
    gpu |= dict.fromkeys(("aggressive_empty_cache", "log_gpu_memory_usage"), lambda *args, **kwargs: None)
    vars(workers).update({name: value for name, value in gpu.items() if hasattr(workers, name)})
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for mode in sys.argv[1:]:
        verl_mtp_plugin.deactivate()
        if mode == "on":
            report = verl_mtp_plugin.activate(Settings(Mode.AUTO))
            found["patch"] = {record.id: str(record.decision) for record in report.patches}["rollout.sglang.ranks"]
        with tempfile.TemporaryDirectory() as folder:
            # Forked: each rank would import for ten seconds.
            arguments = (folder, SLOW_S[mode])
            torch.multiprocessing.start_processes(rank_main, args=arguments, nprocs=2, start_method="fork")
            found[mode] = [json.loads(Path(folder, str(rank)).read_text()) for rank in range(2)]
    print("=> " + json.dumps(found))
    cuda.end_process()


if __name__ == "__main__":
    main()
