"""One release of SGLang: what its speculative workers do with weights, and its scheduler with requests.

All of it as released, then with the patches. Prints JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
from typing import Any

from . import capturing, engine, retract, workers


def update(name: str) -> dict[str, Any]:
    """What came of one message of two tensors, sent to a scheduler with this speculative worker."""
    import torch

    from .models import Model

    number = 0 if name == "NGRAMWorker" else 3 if name.startswith("MultiLayer") else 1
    drafts, target_model = [Model(weight=(4,)) for _ in range(number)], Model(weight=(4,))
    target = workers.make_target(workers.make_runner(target_model))
    worker = workers.make_worker(name, [workers.make_runner(model) for model in drafts], target)
    alive: list[int] = []

    def flushed() -> None:
        gc.collect()
        alive.append(sum(tensor() is not None for model in (*drafts, target_model) for tensor in model.seen))

    scheduler = workers.make_scheduler(worker, target, flushed)
    request = engine.message([("weight", torch.arange(4.0) + 1), ("other", torch.ones(2))])
    error, success = "", None
    with CountedOpenings() as opened:
        try:
            success = engine.in_session(scheduler, lambda: scheduler.update_weights_from_tensor(request)).success
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
    return {
        "error": error,
        "success": success,
        "draft": [model.loaded for model in drafts],
        "target": target_model.loaded,
        "weights": [model.weight.tolist() for model in (*drafts, target_model)],
        "opened": sorted(opened.numels),
        "alive_at_flush": alive,
        "worker_is_back": scheduler.draft_worker is worker,
    }


class CountedOpenings:
    """Counts tensors that are opened from what was sent, below every patch."""

    def __init__(self) -> None:
        self.numels: list[int] = []
        self._serializer = importlib.import_module("sglang.srt.utils").MultiprocessingSerializer
        self._original = self._serializer.deserialize

    def __enter__(self) -> CountedOpenings:
        import torch

        def deserialize(data: Any) -> Any:
            value = self._original(data)
            if isinstance(value, torch.Tensor):
                self.numels.append(value.numel())
            return value

        self._serializer.deserialize = staticmethod(deserialize)
        return self

    def __exit__(self, *exception: object) -> None:
        self._serializer.deserialize = staticmethod(self._original)


def main() -> None:
    engine.prepare()
    from verl_mtp_plugin.rollout.sglang import routes

    classes = {name: engine.worker_class(name) for name in engine.MODULES}
    names = [name for name, cls in classes.items() if isinstance(cls, type)]
    route = {name: routes.route_of(classes[name]) for name in names}
    found: dict[str, Any] = {
        "routes": {name: [r.target, r.draft] for name, r in route.items()},
        "not_importable": {name: cls for name, cls in classes.items() if isinstance(cls, str)},
        "bare": retract.everything({"update": {name: update(name) for name in names}}),
        "recorded": {"bare": capturing.everything(patched=False)},
    }
    found["patches"] = engine.arm()
    found["patched"] = retract.everything({"update": {name: update(name) for name in names}})
    found["recorded"]["patched"] = capturing.everything(patched=True)
    found["decided"] = engine.decided()
    print("=> " + json.dumps(found))


if __name__ == "__main__":
    main()
