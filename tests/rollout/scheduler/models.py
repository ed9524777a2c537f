"""Models that say what they were given. In the process with SGLang."""

from __future__ import annotations

import weakref
from typing import Any

import torch


class Model(torch.nn.Module):
    """Loads tensors by the names of its parameters, skips others without a word, and notes all."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))
        self.loaded: list[str] = []
        self.seen: list[weakref.ref[torch.Tensor]] = []

    def load_weights(self, weights: Any) -> None:
        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            self.loaded.append(name)
            self.seen.append(weakref.ref(tensor))
            if name in parameters:
                parameters[name].data.copy_(tensor)
