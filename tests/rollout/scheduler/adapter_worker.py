"""verl's own ``ServerAdapter`` and SGLang's own sender, in front of SGLang's own handlers. Prints JSON.

    python -m tests.rollout.scheduler.adapter_worker [mimo|plain]

``mimo``: the drafter is SGLang's MiMo drafter (0.5.8 to 0.5.12); else a small model of the same names.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

from . import engine
from .adapter_world import VERL, make_adapter, make_scheduler, weights
from .http_engine import HttpEngine


def outcome(coroutine: Any) -> str:
    try:
        asyncio.run(coroutine)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


async def stream(tensors: dict[str, Any]) -> AsyncIterator[tuple[str, Any]]:
    for item in tensors.items():
        yield item


def sync(adapter: Any, tensors: dict[str, Any], step: int = 1) -> str:
    """One sync, as the checkpoint engine's worker does it."""
    return outcome(adapter.update_weights(stream(tensors), global_steps=step))


def pairs(tensors: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The same as verl's hybrid engine hands it over."""
    yield from tensors.items()


def good(kind: str) -> dict[str, Any]:
    scheduler, _, _ = make_scheduler(kind)
    client = HttpEngine(scheduler)
    adapter = make_adapter(client, kind)
    results = [sync(adapter, weights(kind, 1), 1)]
    results.append(outcome(adapter.update_weights(pairs(weights(kind, 2)), global_steps=2)))
    return {
        "results": results,
        "calls": client.calls,
        "steps": adapter.server_actor.steps,
        "engine": adapter._engine is client,
    }


def stale(kind: str) -> dict[str, Any]:
    """A drafter one of whose numbers is another after each load, from the second sync on; then mended."""
    import torch

    engine.arm(check_drafter=True)
    scheduler, draft, _ = make_scheduler(kind)
    client = HttpEngine(scheduler)
    adapter = make_adapter(client, kind)
    results = [sync(adapter, weights(kind, 1))]
    broken = next(parameter for name, parameter in draft.named_parameters() if name.endswith("input_proj.weight"))
    load = draft.load_weights

    def spoil(named_tensors: Any) -> None:
        load(named_tensors)
        broken.data.view(-1)[0] = torch.nextafter(broken.data.view(-1)[0], torch.tensor(9.0, dtype=broken.dtype))

    draft.load_weights = spoil
    results.append(sync(adapter, weights(kind, 2)))
    draft.load_weights = load
    results.append(sync(adapter, weights(kind, 2)))
    return {"results": results}


def first_sync_skips(kind: str) -> dict[str, Any]:
    """A loader that passes over a name without a word, in the very first sync."""
    engine.arm(check_drafter=True)
    scheduler, draft, _ = make_scheduler(kind)
    load = draft.load_weights
    draft.load_weights = lambda named: load([(n, t) for n, t in named if "input_proj" not in n])
    return {"results": [sync(make_adapter(HttpEngine(scheduler), kind), weights(kind, 1))]}


def nothing_sent(kind: str, check: bool, **given: Any) -> dict[str, Any]:
    """Two syncs of a trainer that exports the trunk alone, as asynchronous and as plain stream."""
    engine.arm(check_drafter=check)
    scheduler, _, _ = make_scheduler(kind)
    client = HttpEngine(scheduler)
    adapter = make_adapter(client, kind, **given)
    with said() as lines:
        results = [sync(adapter, weights(kind, 1, "mtp_layers"))]
        results.append(outcome(adapter.update_weights(pairs(weights(kind, 2, "mtp_layers")), global_steps=2)))
    return {"results": results, "calls": client.calls, "said": lines}


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """The plugin's lines meanwhile, but for warnings."""
    lines: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("verl_mtp_plugin")
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(lambda record: record.levelno == logging.INFO)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def left_out(kind: str, worker: str) -> dict[str, Any]:
    """A speculative worker that loads the target alone, from a drafter of its own."""
    engine.arm(check_drafter=False)
    scheduler, _, target = make_scheduler(kind, worker)
    client = HttpEngine(scheduler)
    return {
        "results": [sync(make_adapter(client, kind), weights(kind, 1))],
        "calls": client.calls,
        "target": target.loaded,
    }


def without_plugin(kind: str, check: bool) -> dict[str, Any]:
    """SGLang's scheduler does not know our questions."""
    engine.arm(check_drafter=check)
    scheduler, _, _ = make_scheduler(kind)
    client = HttpEngine(scheduler, fail={"weights_checker": 99})
    adapter = make_adapter(client, kind)
    return {"results": [sync(adapter, weights(kind, 1)), sync(adapter, weights(kind, 2))], "calls": client.calls}


def failing(kind: str, fail: dict[str, int], *, begun: bool = False) -> dict[str, Any]:
    """A sync in which SGLang refuses something, and the next one."""
    engine.arm(check_drafter=False)
    scheduler, _, _ = make_scheduler(kind)
    if begun and engine.io("BeginWeightUpdateReqInput") is not None:  # by somebody who never ended it
        scheduler.begin_weight_update(engine.io("BeginWeightUpdateReqInput")())
    client = HttpEngine(scheduler, fail)
    adapter = make_adapter(client, kind, mtp=False)
    results = [sync(adapter, weights(kind, 1)), sync(adapter, weights(kind, 2))]
    return {"results": results, "calls": client.calls, "open": getattr(scheduler, "_session", None) is not None}


def follower(kind: str, skip: str | None = None) -> dict[str, Any]:
    """A rank without an HTTP client takes part in the gather alone."""
    engine.arm(check_drafter=True)
    adapter = make_adapter(None, kind, leader=False)
    gathered: list[int] = []
    module = importlib.import_module(VERL)
    original = vars(module)["sgl_update_weights"]

    async def gather(engine: Any, params_batch: Any, **rest: Any) -> None:
        assert engine is None
        gathered.append(len(params_batch))

    vars(module)["sgl_update_weights"] = gather
    try:
        result = sync(adapter, weights(kind, 1, skip))
    finally:
        vars(module)["sgl_update_weights"] = original
    return {"results": [result], "gathered": sum(gathered)}


def lora(kind: str) -> dict[str, Any]:
    """verl >= 0.8 sends an adapter by another route, for which SGLang wants no session."""
    engine.arm(check_drafter=True)
    scheduler, _, _ = make_scheduler(kind)
    client = HttpEngine(scheduler)
    adapter = make_adapter(client, kind)
    peft = {"r": 1, "task_type": "CAUSAL_LM", "peft_type": "LORA", "target_modules": ["q_proj"]}
    importlib.import_module(VERL).ServerAdapter.wrap_lora_params = lambda self, config, named: (dict(peft), [b""])
    result = outcome(adapter.update_weights(pairs({"lora": None}), peft_config=peft, base_sync_done=True))
    return {"results": [result], "calls": client.calls}


def main() -> None:
    kind = sys.argv[1]
    os.environ["VERL_USE_EXTERNAL_PLUGINS"] = "none"
    engine.prepare()
    import torch

    if not torch.distributed.is_initialized() and kind != "mimo":
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    elif kind == "mimo":
        from . import mimo

        mimo.drafters(1, kv_heads=2)
    importlib.import_module(VERL)
    found: dict[str, Any] = {"bare": good(kind)}
    found["patches"] = engine.arm(check_drafter=False)
    found["unchecked"] = good(kind)
    engine.arm(check_drafter=True)
    found["good"] = good(kind)
    found["stale"] = stale(kind)
    found["first_sync_skips"] = first_sync_skips(kind)
    if kind == "plain":
        found["nobodys"] = {"stale": stale("nobodys"), "first_sync_skips": first_sync_skips("nobodys")}
    for mode, check in (("strict", True), ("auto", False)):
        found[f"nothing_sent {mode}"] = nothing_sent(kind, check)
        for load_format in ("auto", "dummy", None):
            found[f"frozen {load_format} {mode}"] = nothing_sent(kind, check, train=False, load_format=load_format)
    found["nothing_sent off"] = nothing_sent(kind, True, mtp=False)
    for name in ("DFlashWorker", "DFlashWorkerV2"):
        if isinstance(engine.worker_class(name), type):
            found["left_out"] = left_out(kind, name)
    found["without_plugin"] = {"strict": without_plugin(kind, True), "auto": without_plugin(kind, False)}
    found["left_open"] = failing(kind, {}, begun=True)
    found["update_fails"] = failing(kind, {"update": 1})
    found["begin_fails"] = failing(kind, {"begin_weight_update": 2})
    found["ended_before"] = failing(kind, {"end_weight_update": 1})
    found["follower"] = follower(kind)
    found["follower unfed"] = follower(kind, "mtp_layers")
    if hasattr(importlib.import_module(VERL).ServerAdapter, "wrap_lora_params"):
        found["lora"] = lora(kind)
    print("=> " + json.dumps(found))


if __name__ == "__main__":
    main()
