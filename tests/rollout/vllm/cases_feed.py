"""Whether the drafter is fed: verl's own vLLM ``ServerAdapter`` with streams good and bad, and a server's launch."""

from __future__ import annotations

import importlib
import logging
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace
from typing import Any

from .cases import CASES, case, outcome
from .server import MODULE, Servers

__all__ = ["CASES"]  # all of them

ADAPTER = "verl.workers.rollout.vllm_rollout.vllm_rollout"
TRUNK = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight")
MTP = ("model.mtp_layers.0.input_proj.weight", "model.mtp_layers.0.self_attn.q_proj.base_layer.weight")
LORA = {"peft_config": {"r": 8}, "base_sync_done": True}
BASE = {"peft_config": {"r": 8}, "base_sync_done": False}


def _remote(name: str, calls: list[str], answer: Any = None) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return answer

    return SimpleNamespace(remote=call)


class _Sender:
    """Takes every tensor, and sends none."""

    def __init__(self, **options: Any) -> None:
        """As verl's."""

    async def async_send_weights(self, weights: Any) -> None:
        if hasattr(weights, "__aiter__"):
            async for _ in weights:
                pass
        else:
            for _ in weights:
                pass


async def _async(pairs: list[Any]) -> AsyncIterator[Any]:
    for pair in pairs:
        yield pair


def _adapter(*, train: bool, load_format: str | None, mtp: bool = True, leader: bool = True) -> tuple[Any, list[str]]:
    module = importlib.import_module(ADAPTER)
    vars(module)["BucketedWeightSender"] = _Sender
    calls: list[str] = []
    names = ("collective_rpc", "clear_kv_cache", "set_global_steps")
    handle = SimpleNamespace(**{name: _remote(name, calls) for name in names})
    if load_format is not None:
        handle.mtp_load_format = _remote("mtp_load_format", calls, load_format)
    adapter = object.__new__(module.ServerAdapter)
    config = {
        "name": "vllm",
        "mtp": SimpleNamespace(enable=mtp, enable_train=train, enable_rollout=mtp),
        "checkpoint_engine": SimpleNamespace(update_weights_bucket_megabytes=1),
    }
    vars(adapter).update(
        config=SimpleNamespace(**config, get=config.get),
        model_config=SimpleNamespace(
            hf_config=SimpleNamespace(architectures=["MiMoForCausalLM"], num_hidden_layers=1), local_path=None
        ),
        server_handle=handle if leader else None,
        replica_rank=2,
        rollout_rank=0 if leader else 1,
        node_rank=0,
        use_shm=False,
        zmq_handle="",
        _has_server=leader,
    )
    return adapter, calls


@case
async def feed(servers: Servers) -> Any:
    """One sync each: the error or "ok", and what was asked of the server; and a frozen drafter's two syncs."""
    found: dict[str, Any] = {}
    for name, names, given, how in (
        ("fed", (*TRUNK, *MTP), {}, {"train": True}),
        ("fed base", (*TRUNK, *MTP), BASE, {"train": True}),
        ("unfed", TRUNK, {}, {"train": True}),
        ("unfed base", TRUNK, BASE, {"train": True}),
        ("unfed follower", TRUNK, {}, {"train": True, "leader": False}),
        ("adapters", TRUNK, LORA, {"train": True}),
        ("nothing came", (), {}, {"train": True}),
        ("frozen", TRUNK, {}, {"load_format": "auto"}),
        ("frozen random", TRUNK, {}, {"load_format": "dummy"}),
        ("frozen random but fed", (*TRUNK, *MTP), {}, {"load_format": "dummy"}),
        ("off", TRUNK, {}, {"train": True, "mtp": False}),
    ):
        for kind in ("sync", "async"):
            chosen: dict[str, Any] = {"train": False, "load_format": None, **how}
            adapter, calls = _adapter(**chosen)
            pairs = [(part, 0) for part in names]
            stream = _async(pairs) if kind == "async" else iter(pairs)
            result = await outcome(partial(adapter.update_weights, **given), stream, 7)
            found[f"{name}, {kind}"] = ["ok" if result is None else result, calls]
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("verl_mtp_plugin")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    adapter, _ = _adapter(train=False, load_format="auto")
    for _ in range(2):
        await adapter.update_weights(iter([(part, 0) for part in TRUNK]))
    logger.removeHandler(handler)
    logger.setLevel(level)
    found["said"] = lines
    return found


@case
async def launch(servers: Servers) -> Any:
    """What becomes of a launch, as far as the refusal goes: the engine is not started."""
    from verl.workers.config.model import MtpConfig

    async def stop(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("vLLM starts")

    cls = importlib.import_module(MODULE).vLLMHttpServer
    found = {}
    for name, mtp, load_format in (
        ("trained", {"enable": True, "enable_train": True, "enable_rollout": True}, "auto"),
        ("frozen", {"enable": True, "enable_rollout": True}, "auto"),
        ("frozen random", {"enable": True, "enable_rollout": True}, "dummy"),
        ("not for rollout", {"enable": True, "enable_train": True}, "dummy"),
        ("off", {}, "dummy"),
    ):
        server = servers.make("HYBRID", mtp=False, load_format=load_format)
        object.__setattr__(server.config, "mtp", MtpConfig(**mtp))
        server.run_server = server.run_headless = stop
        result = await outcome(cls.launch_server, server)
        found[name] = result if str(result).startswith("UnsupportedError") else "went on"
        if name == "frozen random":
            found["load_format"] = await outcome(server.mtp_load_format) if hasattr(server, "mtp_load_format") else ""
    return found
