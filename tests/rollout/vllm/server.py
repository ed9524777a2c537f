"""verl's real ``vLLMHttpServer`` over the stand-in engine, in this process."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from verl_mtp_plugin.testing import toy_model

from . import package

DRAFTS_PER_STEP = 3
#: Tokens that a request may have; verl limits what it asks for to that.
CONTEXT = 100_000
MODULE = "verl.workers.rollout.vllm_rollout.vllm_async_server"


def prepare(vllm: str) -> Any:
    """The stand-in package, then verl's module on it."""
    package.install(vllm)
    import ray

    ray.util.get_node_ip_address = lambda: "127.0.0.1"  # without a Ray session
    return importlib.import_module(MODULE)


class Servers:
    """Makes servers that differ in mode and config."""

    def __init__(self, folder: Path) -> None:
        self._model = toy_model.make(folder, max_position_embeddings=CONTEXT)

    def make(
        self, mode: str = "STANDALONE", *, mtp: bool = True, drafts: bool = True, node_rank: int = 0, **config: Any
    ) -> Any:
        """A server after its launch: with an engine, except on further nodes."""
        from verl.workers.config import HFModelConfig, RolloutConfig
        from verl.workers.config.model import MtpConfig
        from verl.workers.rollout.replica import RolloutMode

        module = importlib.import_module(MODULE)
        rollout = RolloutConfig(
            **{
                "name": "vllm",
                "mtp": MtpConfig(
                    enable=mtp, enable_rollout=mtp and drafts, num_speculative_tokens=DRAFTS_PER_STEP, method="mtp"
                ),
                "tensor_model_parallel_size": 1,
                "data_parallel_size": 1,
                "load_format": "auto",
                "dtype": "float32",
                "prompt_length": 64,
                "response_length": 64,
                "free_cache_engine": True,
                **config,
            }
        )
        server = module.vLLMHttpServer(
            config=rollout,
            model_config=HFModelConfig(path=str(self._model), trust_remote_code=False),
            rollout_mode=RolloutMode[mode],
            workers=[],
            replica_rank=0,
            node_rank=node_rank,
            gpus_per_node=1,
            nnodes=1,
            cuda_visible_devices="0",
        )
        if node_rank == 0:
            speculative = SimpleNamespace(num_speculative_tokens=DRAFTS_PER_STEP) if mtp and drafts else None
            vllm_config = SimpleNamespace(speculative_config=speculative)
            server.engine = module.AsyncLLM.from_vllm_config(
                vllm_config=vllm_config, disable_log_stats=rollout.disable_log_stats
            )
        server.global_steps = 1
        return server
