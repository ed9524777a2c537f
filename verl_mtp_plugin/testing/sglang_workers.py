"""The workers of a stand-in scheduler: models that are a number, which weights of SGLang's own messages set."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

#: The version of a model that has weights of several.
MIXED = -1


class Model:
    """Weights, each known by its first number: the version that it is of."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.weights: dict[str, int] = {}
        self.module = torch.nn.Linear(1, 1)

    def load(self, named_tensors: Any) -> tuple[bool, str]:
        for name, tensor in named_tensors:
            self.weights[name] = int((tensor.get(0) if hasattr(tensor, "get") else tensor).flatten()[0])
        return True, "Success"

    @property
    def version(self) -> int:
        """Of all weights; 0 before any was loaded."""
        found = set(self.weights.values()) or {0}
        return found.pop() if len(found) == 1 else MIXED


class Worker:
    """A target or draft worker: what SGLang's scheduler asks of it when weights come in.

    Before 0.5.21 the draft's worker loads the draft and hands the same message to the target's; since then the
    scheduler loads each model itself, as a runner.
    """

    def __init__(self, role: str, target: Worker | None = None) -> None:
        self.model = Model(role)
        self.target = target
        self.sessions: list[str] = []
        updater = SimpleNamespace(
            begin_weight_update=lambda: self.sessions.append("begin"),
            end_weight_update=lambda run_post_load: self.sessions.append("end"),
            update_weights_from_tensor=lambda named_tensors, load_format: self.model.load(named_tensors),
        )
        self.model_runner = SimpleNamespace(model=self.model.module, weight_updater=updater, tp_rank=0)

    @property
    def version(self) -> int:
        return self.model.version

    def clear_cache_pool(self) -> None:
        """Of the draft; there is none here."""

    def update_weights_from_tensor(self, message: Any) -> tuple[bool, str]:
        done = self.model.load(self.deserialize_own_rank(message.serialized_named_tensors))
        return self.target.update_weights_from_tensor(message) if self.target is not None else done

    def deserialize_own_rank(self, serialized: Any) -> Any:
        from sglang.srt.utils import MultiprocessingSerializer

        return MultiprocessingSerializer.deserialize(serialized[0])

    def weight_update_runners(self) -> list[tuple[str, Any]]:
        return [(self.model.role, self.model_runner)]


def make_workers(server_args: Any) -> tuple[Worker, Worker | None]:
    """The target's worker, and the draft's where the server speculates."""
    target = Worker("target")
    return target, Worker("draft", target) if server_args.speculative_algorithm else None


def versions(workers: tuple[Worker, Worker | None]) -> Mapping[str, int]:
    """Which version each model has."""
    return {worker.model.role: worker.version for worker in workers if worker is not None}
