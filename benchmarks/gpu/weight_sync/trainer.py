"""The trainer's side: an actor without a GPU that sends the weights of a folder, or others made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import Dispatch, register

HEAD: Final = "lm_head.weight"


def read(folder: str) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face folder."""
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        weights |= load_file(path)
    if HEAD not in weights:
        raise ValueError(f"no {HEAD} in {folder}: a model with an output layer of its own is needed")
    return weights


def rolled(weights: dict[str, torch.Tensor], roll: int) -> dict[str, torch.Tensor]:
    """New weights whose output is known: rows of the head move by ``roll``, so a token t becomes t + roll.

    Tensors of the drafter are scaled besides, so that it has other weights too; its choice hardly depends on that.
    """
    if not roll:
        return weights
    scale = 1 + (roll % 8) / 64
    new = {name: tensor * scale if ".mtp_layers." in name else tensor for name, tensor in weights.items()}
    return {**new, HEAD: torch.roll(weights[HEAD], roll, 0)}


def numbered(weights: dict[str, torch.Tensor], roll: int) -> dict[str, torch.Tensor]:
    """For a rehearsal, whose model is the number that all weights hold."""
    return {name: torch.full_like(tensor, roll) for name, tensor in weights.items()}


class Trainer(Worker):
    """Stands for verl's actor worker in a weight sync."""

    def __init__(self, folder: str, rehearsal: bool) -> None:
        super().__init__()
        from .transfer import FileToGpu

        self.engine = FileToGpu()
        self.weights, self.roll = read(folder), 0
        self.vary = numbered if rehearsal else rolled

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[untyped-decorator]
    def choose(self, roll: int) -> None:
        """Which weights the next syncs send."""
        self.roll = roll

    @register(dispatch_mode=Dispatch.ONE_TO_ALL, blocking=False)  # type: ignore[untyped-decorator]
    async def update_weights(self, global_steps: Any = None, mode: str = "auto") -> None:
        await self.engine.send_weights(self.vary(self.weights, self.roll).items())

    @register(dispatch_mode=Dispatch.DP_COMPUTE, blocking=False)  # type: ignore[untyped-decorator]
    def execute_checkpoint_engine(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.engine, method)(*args, **kwargs)
