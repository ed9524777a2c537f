"""verl's real ``SGLangHttpServer`` and ``SGLangReplica`` on CPU: what they are given, and servers in this process."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from verl_mtp_plugin.testing import faults, sglang_engine, toy_model


def folder() -> Path:
    """Where this host may write."""
    return Path(os.environ["ROLLOUT_TEST_FOLDER"])


def prepare() -> None:
    """Stand-ins, before verl and SGLang are imported; no fault is set."""
    os.environ.setdefault(faults.VARIABLE, str(folder() / "faults"))
    sglang_engine.install()
    faults.clear_faults()


def mtp_config(enable: bool = True, **options: Any) -> Any:
    """``model.mtp`` of a job that trains MTP and does not draft with it: the model here has nothing to draft with."""
    from verl.workers.config.model import MtpConfig

    return MtpConfig(enable=enable, **options)


def model_config(mtp: bool = True) -> Any:
    """verl's config of a model that consists of a config and a tokenizer whose words are their ids."""
    from verl.workers.config import HFModelConfig

    path = toy_model.make(folder() / "model")
    return HFModelConfig(path=str(path), trust_remote_code=False, mtp=mtp_config(mtp))


def rollout_config(**options: Any) -> Any:
    """verl's config of a rollout server with one rank."""
    from verl.workers.config import RolloutConfig

    defaults = {
        "name": "sglang",
        "tensor_model_parallel_size": 1,
        "data_parallel_size": 1,
        "load_format": "auto",
        "dtype": "float32",
        "prompt_length": 8,
        "response_length": 8,
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "free_cache_engine": True,
        "max_num_seqs": 16,
        "engine_kwargs": {"sglang": dict(sglang_engine.ENGINE_KWARGS)},
    }
    return RolloutConfig(**{**defaults, **options})


async def launch(model: Any, mode: str = "STANDALONE", node_rank: int = 0, **options: Any) -> Any:
    """A server in this process, whose scheduler is ``sglang_engine.schedulers[-1]``; only launched on node 0."""
    from verl.workers.rollout.replica import RolloutMode
    from verl.workers.rollout.sglang_rollout.async_sglang_server import SGLangHttpServer

    server = SGLangHttpServer(
        config=rollout_config(**options),
        model_config=model,
        rollout_mode=RolloutMode[mode],
        workers=[],
        replica_rank=0,
        node_rank=node_rank,
        nnodes=1 + node_rank,
        cuda_visible_devices="0",
        base_gpu_id=0,
    )
    if node_rank == 0:
        await server.launch_server()
    return server


async def generate(server: Any, tokens: int = 4, name: str = "") -> list[int]:
    """The token ids of one request."""
    output = await server.generate([1, 2, 3], {"max_new_tokens": tokens}, name or os.urandom(8).hex())
    return list(output.token_ids)


def without_ray() -> None:
    """verl asks Ray for this machine's address; without a session there is only the loopback."""
    import ray

    ray.util.get_node_ip_address = lambda: socket.gethostbyname("localhost")
