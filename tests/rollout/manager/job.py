"""A manager of the installed verl with two replicas of two servers each, over the stand-in for Ray."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace
from typing import Any

import verl.checkpoint_engine.base as base
from verl.workers.rollout.replica import RolloutMode, RolloutReplica

from . import fake_ray
from .actors import CacheServer, Server, Worker

base.ray = SimpleNamespace(get=fake_ray.get, wait=fake_ray.wait)

#: Whether the servers of this verl can release their cache alone.
HAS_CACHE_CONTROLS = hasattr(RolloutReplica, "release_kv_cache")
REPLICAS, SERVERS = 2, 2


class Engine:
    """A checkpoint engine as the manager sees it."""

    wire_format = "named_tensors"

    @classmethod
    def build_topology(cls, trainers: int, rollouts: int, metadata: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        assert metadata == ["prepare"] * (trainers + rollouts)
        return {"rank": list(range(trainers))}, {"rank": list(range(trainers, trainers + rollouts))}


class Differences(Engine):
    """One that sends what has changed since the last sync."""

    wire_format = "delta_flush"


base.CheckpointEngineRegistry.register("test")(Engine)
base.CheckpointEngineRegistry.register("test_differences")(Differences)


class Replica(RolloutReplica):
    """verl's replica without its launch: which servers are called, and how, is verl's own code."""

    def __init__(self, rank: int, server_class: type[Server], config: SimpleNamespace) -> None:
        self.replica_rank, self.config, self.rollout_mode = rank, config, RolloutMode.STANDALONE
        self.model_config = SimpleNamespace(mtp=config.mtp)
        self.log: list[str] = []
        self.actors = [server_class(self.log, free_cache_engine=config.free_cache_engine) for _ in range(SERVERS)]
        self.engines = [Worker(self.log, server) for server in self.actors]
        self.servers = [fake_ray.Handle(server) for server in self.actors]
        self.workers = [fake_ray.Handle(engine) for engine in self.engines]
        self._server_handle, self._server_address = self.servers[0], "nowhere"

    def get_ray_class_with_init_args(self) -> Any:
        raise NotImplementedError

    async def launch_servers(self) -> None:
        raise NotImplementedError


class Job:
    """A manager, its replicas and its trainer."""

    def __init__(
        self,
        backend: str = "test",
        manager_class: Any = None,
        server_class: type[Server] = CacheServer if HAS_CACHE_CONTROLS else Server,
        mode: Any = RolloutMode.STANDALONE,
        plugin: Any = None,
        free_cache_engine: bool = True,
        mtp: bool = True,
    ) -> None:
        settings = {"enable": mtp, "plugin": plugin}
        config = SimpleNamespace(name="sglang", free_cache_engine=free_cache_engine, mtp=settings)
        self.replicas = [Replica(rank, server_class, config) for rank in range(REPLICAS)]
        for replica in self.replicas:
            replica.rollout_mode = mode
        self.trainer = Worker([])
        classes = base.RayClassWithInitArgs(cls=base._worker_cls)
        group = base.RayWorkerGroup(worker_handles=[fake_ray.Handle(self.trainer)], ray_cls_with_init=classes)
        manager = manager_class or base.CheckpointEngineManager
        if "backend" in inspect.signature(manager).parameters:  # before verl 0.7.1
            self.manager = manager(backend, group, self.replicas)
        else:
            engine = SimpleNamespace(backend=backend, custom_backend_module=None)
            self.manager = manager(engine, group, self.replicas)
        with_step = "global_steps" in inspect.signature(manager.update_weights).parameters
        self.step = {"global_steps": 7} if with_step else {}

    def sync(self) -> Any:
        """As verl's synchronous trainers call it; what it returns, or what it raises as text."""
        try:
            return self.manager.update_weights(**self.step)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def generate(self) -> list[Any]:
        """What each server says to a request now; "hangs" if it holds it back and goes on to do so."""

        async def one(handle: Any, server: Server) -> Any:
            request = asyncio.ensure_future(_answer(handle.generate.remote()))
            while True:
                await asyncio.wait({request}, timeout=0.3)
                if request.done():
                    return list(request.result())
                if not server.open.is_set():
                    request.cancel()
                    return "hangs"

        async def main() -> list[Any]:
            pairs = [pair for replica in self.replicas for pair in zip(replica.servers, replica.actors)]
            return await asyncio.gather(*(one(handle, server) for handle, server in pairs))

        return asyncio.run(main())


async def _answer(reference: Any) -> Any:
    return await reference
