"""A checkpoint engine of verl's that moves weights through a file: for tests of what surrounds a transfer.

Its directory is that of :mod:`.faults`, whose faults it has too. verl >= 0.8 imports it by
``checkpoint_engine.custom_backend_module``; for 0.7.1 import it before the manager and its workers are made.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Final

import torch
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

from . import faults
from .faults import Fault

#: ``checkpoint_engine.backend``.
BACKEND: Final = "file"
POLL_S: Final = 0.01
#: How long receivers wait for a sender that says nothing; one that fails says so.
WAIT_S: Final = 30.0


class TransferFault(RuntimeError):
    """A fault that a test asked for."""


def weights_file() -> Path:
    """Where the weights lie: beside the directory of the faults."""
    path = Path(os.environ[faults.VARIABLE])
    return path.with_name(f"{path.name}.weights")


def _failed_file() -> Path:
    """There when the sender has failed, as the others of a broken connection notice."""
    return weights_file().with_suffix(".failed")


@CheckpointEngineRegistry.register(BACKEND)
class FileTransfer(CheckpointEngine):
    """One sender, any number of receivers; each transfer begins with an empty place."""

    wait_s = WAIT_S

    def __init__(self, bucket_size: int = 0, is_master: bool = False, **options: Any) -> None:
        self.bucket_size, self.is_master = bucket_size, is_master

    def prepare(self) -> dict[str, Any]:
        _raise("prepare")
        for path in (weights_file(), _failed_file()):
            path.unlink(missing_ok=True)
        return {}

    @classmethod
    def build_topology(
        cls, trainers: int, rollouts: int, metadata: Any
    ) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        return {"rank": list(range(trainers))}, {"rank": list(range(trainers, trainers + rollouts))}

    def init_process_group(self, rank: int, **options: Any) -> None:
        _raise("init")

    def finalize(self) -> None:
        _raise("finalize")

    async def send_weights(self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None) -> None:
        try:
            await _fault("send")
        except TransferFault:
            _failed_file().touch()
            raise
        path = weights_file()
        torch.save(dict(weights), path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        end = time.monotonic() + self.wait_s
        while not weights_file().exists():
            await asyncio.sleep(POLL_S)
            if _failed_file().exists():
                raise TransferFault("the sender has failed")
            if time.monotonic() > end:
                raise TransferFault(f"no weights came within {self.wait_s:g} s")
        named = list(torch.load(weights_file()).items())
        for index, (name, tensor) in enumerate(named):
            if index == len(named) - 1:
                await _fault("receive")  # half of them have arrived
            yield name, tensor


def _raise(step: str) -> None:
    if faults.take(step) is not None:
        raise TransferFault(f"asked to fail at {step}")


async def _fault(step: str) -> None:
    fault = faults.take(step)
    if fault is Fault.HANG:
        await asyncio.Event().wait()
    if fault is not None:
        raise TransferFault(f"asked to fail at {step}")
