"""Triton kernels for the passes over the logits: one that reads them, and one that writes the slope over them.

PyTorch's own softmax takes four passes and an fp32 copy for the same; on an H100 they cost more time than the matrix
products around them. Without Triton, or on the CPU, :mod:`.vocabulary` uses PyTorch.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import lru_cache
from typing import Any

import torch

logger = logging.getLogger("verl_mtp_plugin")

READ_BLOCK, WRITE_BLOCK = 2048, 8192  # the fastest on an H100 with 151,680 columns
#: A lane that has seen nothing yet. Finite, so that differences are no NaN.
LOWEST = -3.0e38


@lru_cache(maxsize=1)
def _kernels() -> Any:
    """The two kernels, built at first use; None without Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def read(logits, highest, log_sum, best, columns, scale, lowest, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0).to(tl.int64)
        lane_high = tl.zeros([BLOCK], tl.float32) + lowest
        lane_sum = tl.zeros([BLOCK], tl.float32)
        lane_best = tl.zeros([BLOCK], tl.int32)
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < columns
            x = tl.load(logits + row * columns + column, mask=inside, other=0.0).to(tl.float32) * scale
            x = tl.where(inside, x, lowest)
            higher = tl.maximum(lane_high, x)
            lane_sum = lane_sum * tl.exp(lane_high - higher) + tl.exp(x - higher)
            lane_best = tl.where(x > lane_high, column, lane_best)
            lane_high = higher
        high = tl.max(lane_high, axis=0)
        tl.store(highest + row, high)
        tl.store(log_sum + row, tl.log(tl.sum(lane_sum * tl.exp(lane_high - high), axis=0)))
        tl.store(best + row, tl.min(tl.where(lane_high == high, lane_best, columns), axis=0))

    @triton.jit  # type: ignore[untyped-decorator]
    def write(logits, highest, log_sum, label, columns, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        place = logits + row * columns + column
        x = tl.load(place, mask=inside, other=0.0).to(tl.float32) * scale
        q = tl.exp((x - tl.load(highest + row)) - tl.load(log_sum + row))
        tl.store(place, tl.where(column == tl.load(label + row), q - 1.0, q), mask=inside)

    return read, write


def usable(logits: torch.Tensor) -> bool:
    """Whether the kernels can take these logits: on CUDA, contiguous, of at most 32 bits."""
    small = logits.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return logits.is_cuda and small and logits.is_contiguous() and works(logits.device)


@lru_cache(maxsize=16)
def works(device: torch.device) -> bool:
    """Whether the kernels can be built and are right on this device: tried once, on three logits.

    Triton needs a C compiler at run time, which a container may lack; PyTorch is then slower, and as right.
    """
    if _kernels() is None:
        return False
    try:
        logits = torch.tensor([[0.0, 1.0, 0.5]], device=device)
        highest, log_sum, best = row_statistics(logits, 1.0)
        slope = cross_entropy_slope(logits.clone(), 1.0, highest, log_sum, torch.tensor([2], device=device))
        expected = logits.softmax(-1) - torch.tensor([[0.0, 0.0, 1.0]], device=device)
        right = best.item() == 1 and torch.allclose(slope, expected, atol=1e-5)
        problem = "" if right else f"wrong results: {slope.tolist()}, expected {expected.tolist()}"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        logger.warning("MTP loss: Triton kernels cannot be used on %s, PyTorch's are slower (%s)", device, problem)
    return not problem


def row_statistics(logits: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per row of ``scale * logits`` [n, v]: the largest, the log of the sum of exp(logit - largest), its column."""
    rows, columns = logits.shape
    highest, log_sum = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    best = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        read, _ = _kernels()
        read[(rows,)](logits, highest, log_sum, best, columns, scale, LOWEST, BLOCK=READ_BLOCK, num_warps=8)
    return highest, log_sum, best


def cross_entropy_slope(
    logits: torch.Tensor, scale: float, highest: torch.Tensor, log_sum: torch.Tensor, label: torch.Tensor
) -> torch.Tensor:
    """softmax - onehot(label), written over ``logits`` [n, v]. ``label`` [n] holds columns, -1 for none."""
    rows, columns = logits.shape
    if rows:
        _, write = _kernels()
        grid = (rows, -(-columns // WRITE_BLOCK))
        write[grid](logits, highest, log_sum, label, columns, scale, BLOCK=WRITE_BLOCK, num_warps=8)
    return logits
