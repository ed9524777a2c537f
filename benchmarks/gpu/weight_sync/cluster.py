"""verl's own parts around one SGLang server: Ray, checkpoint manager, replica, workers; and questions to the server."""

from __future__ import annotations

import argparse
import asyncio
import copy
import hashlib
import json
import os
import time
import urllib.request
from dataclasses import replace
from typing import Any

from . import rehearsal
from .machine import Gpu, Watch
from .options import Model

Prompts = list[list[int]]


class Cluster:
    """One Ray session with a trainer and one standalone replica."""

    def __init__(self, options: argparse.Namespace, session: str) -> None:
        self.options, self.session = options, session
        self.model, self.gpu = Model.of(options.model), Gpu()
        self.step = self.roll = 0
        self.utilization = options.utilization or self.model.utilization(self.gpu.total() / 1024 or 80.0)

    # -- start -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        import ray

        hook = {"runtime_env": {"worker_process_setup_hook": rehearsal.HOOK}} if self.options.rehearse else {}
        ray.init(
            address="local",
            num_cpus=8,
            num_gpus=1,
            include_dashboard=False,
            configure_logging=False,
            object_store_memory=1 << 30,
            **hook,
        )
        from verl.checkpoint_engine.base import CheckpointEngineManager
        from verl.workers.rollout.replica import get_rollout_replica_class

        config, rollout, model = self._configs()
        self.trainer = self._make_trainer()
        replica_class = get_rollout_replica_class("sglang")
        os.environ.update(rehearsal.ENVIRONMENT if self.options.rehearse else {})  # verl's loader takes some away
        self.replica = replica_class(replica_rank=0, config=rollout, model_config=model, gpus_per_node=1)
        await self.replica.init_standalone()
        self._manager = CheckpointEngineManager
        self._config = config
        self.adopt()
        host, port = await self.server.get_server_address.remote()
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def _configs(self) -> tuple[Any, Any, Any]:
        from verl.workers.config import CheckpointEngineConfig, HFModelConfig, MtpConfig, RolloutConfig

        from . import transfer

        rehearse = self.options.rehearse
        checkpoint = CheckpointEngineConfig(
            backend=transfer.BACKEND,
            update_weights_bucket_megabytes=1 if rehearse else self.options.bucket_mib,
            custom_backend_module=transfer.__name__,
        )
        mtp = MtpConfig(
            enable=not rehearse,
            enable_rollout=not rehearse,
            speculative_num_steps=2,
            speculative_eagle_topk=1,
            speculative_num_draft_tokens=3,
        )
        model = HFModelConfig(path=str(self.model.folder), trust_remote_code=not rehearse, mtp=mtp)
        sampling = {"sampling_backend": self.options.sampling} if self.options.sampling else {}
        engine = {"attention_backend": self.options.attention, "cuda_graph_max_bs": 32, **sampling}
        rollout = RolloutConfig(
            name="sglang",
            tensor_model_parallel_size=1,
            load_format="auto",
            dtype="float32" if rehearse else "bfloat16",
            gpu_memory_utilization=self.utilization,
            prompt_length=64,
            response_length=8000,
            skip_tokenizer_init=True,
            enforce_eager=rehearse,
            free_cache_engine=True,
            max_num_seqs=64,
            mtp=mtp,
            checkpoint_engine=checkpoint,
            engine_kwargs={"sglang": rehearsal.ENGINE if rehearse else engine},
        )
        return checkpoint, rollout, model

    def _make_trainer(self) -> Any:
        import ray
        from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup

        from .trainer import Trainer

        pool = RayResourcePool([1], use_gpu=False, max_colocate_count=1)
        made = RayClassWithInitArgs(ray.remote(Trainer), str(self.model.folder), self.options.rehearse)
        return RayWorkerGroup(pool, made, use_gpu=False)

    def adopt(self) -> None:
        """Take the actors for a replica that no sync has given up."""
        self.replica = copy.copy(self.replica)
        self.manager = self._manager(config=self._config, actor_wg=self.trainer, replicas=[self.replica])

    @property
    def server(self) -> Any:
        return self.replica.server_handle

    @property
    def worker(self) -> Any:
        return self.replica.workers[0]

    # -- weights -----------------------------------------------------------------------------------------------------

    async def sync(self, roll: int = 0) -> dict[str, Any]:
        """One weight sync: its metrics, the seconds it took, least and most MiB in use meanwhile."""
        self.trainer.choose(roll)
        self.step, self.roll = self.step + 1, roll
        with Watch(self.gpu) as watch:
            begin = time.monotonic()
            metrics = await self.manager.update_weights(global_steps=self.step)
            seconds = time.monotonic() - begin
        named = {name.removeprefix("weight_sync/"): value for name, value in (metrics or {}).items()}
        return {**named, "seconds": seconds, "least_mib": watch.least, "most_mib": watch.most}

    async def fails(self, roll: int = 0) -> str:
        """The error of a sync; "" if there is none."""
        try:
            await self.sync(roll)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).strip()[-2000:]}"
        return ""

    async def rescue(self) -> None:
        """By hand what verl does not do after a sync that failed: buffers dropped, cache mapped, requests let in."""
        import ray

        ray.get(self.worker.execute_checkpoint_engine.remote("finalize"))
        await self.replica.resume_kv_cache()
        await self.replica.resume_generation()

    async def check_drafter(self, on: bool) -> None:
        """The plugin's strict mode in the worker that sends the weights, for the next syncs."""

        def choose(worker: Any) -> None:
            from verl_mtp_plugin import runtime

            runtime.arm(replace(runtime.settings(), check_drafter=on))

        await self.worker.__ray_call__.remote(choose)

    async def compared(self) -> int:
        """Parameters of the drafter that have been compared with what was sent."""

        def look(worker: Any) -> int:
            drafter = vars(worker.server_adapter).get("_verl_mtp_drafter")
            return 0 if drafter is None or not drafter.answers else len(drafter._book._paths)

        return int(await self.worker.__ray_call__.remote(look))

    def retract(self, on: bool) -> None:
        """The plugin's ``sync_requests``, which is read in this process."""
        from verl_mtp_plugin import runtime

        runtime.arm(replace(runtime.settings(), sync_requests="retract" if on else "abort"))

    async def free_cache(self, on: bool) -> None:
        """verl's ``free_cache_engine``, on both sides."""

        def choose(server: Any) -> None:
            vars(server.config)["free_cache_engine"] = on

        await self.server.__ray_call__.remote(choose)
        vars(self.replica.config)["free_cache_engine"] = on

    # -- requests ----------------------------------------------------------------------------------------------------

    def prompts(self, number: int, length: int = 32, seed: int = 0) -> Prompts:
        import random

        chosen = random.Random(f"{seed}/{number}/{length}")
        usable = [token for token in range(10, self.model.vocabulary) if token not in self.model.special]
        return [chosen.choices(usable, k=length) for _ in range(number)]

    async def ask(self, prompts: Prompts, tokens: int, **sampling: Any) -> list[Any]:
        """Greedy answers of exactly ``tokens`` tokens, all asked at once: verl's TokenOutput."""
        return await asyncio.gather(*(self.begin(prompt, tokens, **sampling) for prompt in prompts))

    def begin(self, prompt: list[int], tokens: int, **sampling: Any) -> Any:
        greedy = {"max_new_tokens": tokens, "temperature": 0.0, "ignore_eos": True, **sampling}
        return self.server.generate.remote(prompt, greedy, os.urandom(8).hex())

    async def served(self, seconds: float = 5.0) -> bool:
        """Whether a request is answered in time."""
        try:
            await asyncio.wait_for(self.begin([11, 12, 13], 4), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    def expected_first(self, first: list[int], roll: int) -> list[int]:
        """What tokens become when the head is rolled."""
        if self.options.rehearse:
            return [token + 10_000 * roll for token in first]
        return [(token + roll) % self.model.vocabulary for token in first]

    # -- questions ---------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """The plugin's; in_flight, paused, released."""
        return dict(await self.server.mtp_status.remote())

    async def engine(self) -> dict[str, Any]:
        """SGLang's own report of itself, once a request has been served.

        Its HTTP route for that fails in verl's server (500), so the server's process is asked.
        """

        def begin(server: Any) -> None:  # not always in the event loop's thread
            manager = server.tokenizer_manager
            server._benchmark_question = asyncio.run_coroutine_threadsafe(
                manager.get_internal_state(), manager.event_loop
            )

        def look(server: Any) -> Any:
            task = server._benchmark_question
            return dict(task.result()[0]) if task.done() else None

        await self.server.__ray_call__.remote(begin)
        for _ in range(200):
            await asyncio.sleep(0.05)
            found = await self.server.__ray_call__.remote(look)
            if found is not None:
                return dict(found)
        raise RuntimeError("SGLang did not report its state within 10 s")

    async def pool_gib(self) -> float:
        """The target's KV pool by SGLang; the drafter's is not in its report."""
        return float((await self.engine()).get("memory_usage", {}).get("kvcache", 0.0))

    async def fingerprint(self) -> str:
        """Of the target's weights, from SGLang's own checksums."""
        if self.options.rehearse:
            return str(self.roll)
        try:
            answer = await self._http("weights_checker", {"action": "checksum"})
        except OSError as error:
            return f"none: {error}"
        return hashlib.sha256(json.dumps(answer.get("ranks"), sort_keys=True).encode()).hexdigest()[:16]

    async def _http(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, {"Content-Type": "application/json"})

        def call() -> Any:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())

        return await asyncio.to_thread(call)
