"""SGLang's own MiMo drafter, sharded over ranks by its own loader, compared with what was sent. Prints JSON."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from . import engine

#: Tensor-parallel ranks, and heads of keys and values: fewer than ranks are copied to several.
LAYOUTS = ((1, 2), (2, 4), (2, 2), (2, 1), (4, 4), (4, 2), (4, 1))


def compare(ranks: int, kv_heads: int, dtype: str = "bfloat16", sent_dtype: str = "bfloat16") -> dict[str, Any]:
    """Two good syncs of one replica, then one in which a single rank keeps the weights of the second."""
    import torch

    from verl_mtp_plugin.rollout.sglang.drafter import Drafter

    from . import mimo

    models = mimo.drafters(ranks, kv_heads, getattr(torch, dtype))
    drafter = Drafter(None, "replica 0", mimo.config(kv_heads))
    drafter.learn([{"ranks": answer(models, with_digests=False)}])
    results = []
    for seed in range(3):
        tensors = mimo.checkpoint(kv_heads, seed, getattr(torch, sent_dtype))
        for model in models if seed < 2 else models[:-1]:
            model.load_weights(list(tensors.items()))
        for _ in drafter.watch(iter(tensors.items())):
            pass
        compared = drafter.compare([{"ranks": answer(models, with_digests=True)}])
        results.append([len(compared.held), sorted(compared.different), sorted(compared.uncompared)])
    return {"results": results, "parameters": len(answer(models, with_digests=False)[0])}


def answer(models: list[Any], *, with_digests: bool) -> list[Any]:
    """What the schedulers of all ranks answer together; embedding and head are the target's."""
    from verl_mtp_plugin.rollout.sglang import parameters

    found = []
    for model in models:
        shared = SimpleNamespace(parameters=lambda m=model: [m.model.embed_tokens.weight, m.lm_head.weight])
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=shared))
        scheduler = SimpleNamespace(tp_worker=worker, tp_cpu_group=None)
        runner = SimpleNamespace(model=model)
        found += parameters.of_all_ranks(scheduler, [runner], with_digests=with_digests)
    return found


def main() -> None:
    engine.prepare()
    found: dict[str, Any] = {f"{ranks} ranks, {heads} heads": compare(ranks, heads) for ranks, heads in LAYOUTS}
    found["fp32 sent"] = compare(2, 2, sent_dtype="float32")
    found["fp32 drafter"] = compare(2, 2, dtype="float32")
    found["fp8 drafter"] = compare(2, 2, dtype="float8_e4m3fn")
    print("=> " + json.dumps(found))


if __name__ == "__main__":
    main()
