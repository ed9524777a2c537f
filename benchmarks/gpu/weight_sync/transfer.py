"""A checkpoint engine for one GPU: weights go through a file into two buckets on the receiver's GPU.

The memory is that of verl's NCCL engine: two buffers of ``update_weights_bucket_megabytes`` each, held from ``prepare``
to ``finalize``. The sender needs no GPU.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import torch
from verl.checkpoint_engine.base import CheckpointEngineRegistry

from verl_mtp_plugin.testing import file_transfer

#: ``checkpoint_engine.backend``.
BACKEND: Final = "file_to_gpu"
_ALIGN: Final = 512


@CheckpointEngineRegistry.register(BACKEND)
class FileToGpu(file_transfer.FileTransfer):
    """``bucket_size`` in bytes; 0 for a sender, which has no buffers."""

    wait_s = 60.0

    def __init__(self, bucket_size: int = 0, is_master: bool = False, **options: Any) -> None:
        super().__init__(bucket_size, is_master, **options)
        self._buffers: list[torch.Tensor] = []
        self._offset = 0

    def prepare(self) -> dict[str, Any]:
        metadata = super().prepare()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._buffers, self._offset = [], 0
        for _ in range(2 if self.bucket_size else 0):
            self._buffers.append(torch.zeros(self.bucket_size, dtype=torch.uint8, device=device))
        return metadata

    def finalize(self) -> None:
        self._buffers = []
        if torch.cuda.is_available() and self.bucket_size:
            torch.cuda.empty_cache()
        super().finalize()

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        async for name, tensor in super().receive_weights(global_steps):
            yield name, self._place(tensor)

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in the bucket that is being filled. verl copies what it keeps."""
        size = tensor.numel() * tensor.element_size()
        if size > self.bucket_size:
            raise ValueError(f"a tensor of {size} bytes does not fit a bucket of {self.bucket_size}")
        if self._offset + size > self.bucket_size:
            self._buffers.reverse()
            self._offset = 0
        place = self._buffers[0][self._offset : self._offset + size].view(tensor.dtype).view(tensor.shape)
        self._offset = -(-(self._offset + size) // _ALIGN) * _ALIGN
        return place.copy_(tensor)
