"""Labels, masks and tokens of packed sequences, one position to the left, all sequences at once.

megatron-core does it sequence by sequence: a handful of kernels and of waits for the GPU each, and with context
parallelism two messages each, for every tensor and MTP depth. Here the number of kernels, and of messages, does not
depend on the number of sequences, and nothing waits for the GPU.
"""

from __future__ import annotations

from typing import Any

import torch


def roll(
    tensor: torch.Tensor,
    shifts: int,
    dims: int,
    packed_seq_params: Any,
    cp_group: Any = None,
    return_sum: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What ``_roll_tensor_packed_seq`` of megatron-core 0.16 to 0.20 returns, with its parameters.

    Args:
        tensor: [..., t]; with context parallelism this rank's part [..., t / cp], of each sequence the chunks r and
            2 cp - 1 - r out of 2 cp.
        shifts: -1.
        dims: the last one.
        packed_seq_params: whose ``cu_seqlens_q`` [sequences + 1] are the sequences' bounds in the whole of t; what they
            say of more than t is not looked at.
        cp_group: of context parallelism; None without.
        return_sum: whether the sum is wanted (megatron-core 0.20 asks).

    Returns:
        The rolled tensor, with 0 at the last position of each sequence and as it was behind the last sequence, and
        its sum or None.

    Raises:
        AssertionError: for other shifts or dims, or no bounds, like megatron-core.
    """
    bounds = packed_seq_params.cu_seqlens_q
    assert bounds is not None, "found packed sequences without cu_seqlens_q"
    rolled = roll_bounded(tensor, shifts, dims, bounds, cp_group)
    return rolled, rolled.sum() if return_sum else None


def roll_bounded(
    tensor: torch.Tensor, shifts: int, dims: int, bounds: torch.Tensor, cp_group: Any = None, fill_value: float = 0
) -> torch.Tensor:
    """The same for ``_roll_tensor_packed_seq_zigzag_cp`` of megatron-core dev: given the bounds, and what ends fill.

    Args:
        bounds: as ``cu_seqlens_q`` above.
        fill_value: what stands at the last position of each sequence.
    """
    assert shifts == -1, f"found shifts {shifts}, expected -1"
    assert dims in (-1, tensor.dim() - 1), f"found dims {dims}, expected the last"
    ranks = cp_group.size() if cp_group is not None else 1
    length = tensor.shape[-1]
    bounds = (bounds // ranks).clamp(max=length)  # verl 0.7.1's own workers give position ids of fewer tokens
    starts, ends = bounds[:-1], bounds[1:]
    middles = starts + (ends - starts + 1) // 2
    # A sequence of no tokens has no last position: what would be written there goes behind the end, and is dropped.
    last = torch.where(ends > starts, ends - 1, length).long()
    rolled = torch.cat([torch.roll(tensor, -1, -1), tensor[..., :1]], -1)
    if ranks == 1:
        rolled.index_fill_(-1, last, fill_value)
    else:
        # Of the two chunks' first elements that others need; the index of an empty sequence only has to exist.
        heads = (tensor.detach()[..., chunk.clamp(max=length - 1).long()] for chunk in (starts, middles))
        ours = torch.stack(list(heads))
        theirs = [torch.empty_like(ours) for _ in range(ranks)]
        torch.distributed.all_gather(theirs, ours, group=cp_group)
        rank = torch.distributed.get_rank(cp_group)
        # The second chunk is followed by that of the rank before, or is the sequence's end.
        rolled[..., last] = theirs[rank - 1][1] if rank else torch.full_like(ours[1], fill_value)
        if rank < ranks - 1:  # the first one by that of the rank behind; the last rank's two are neighbours
            rolled[..., torch.where(ends > starts, middles - 1, length).long()] = theirs[rank + 1][0]
    inside = torch.arange(length, device=tensor.device) < ends[-1]
    return torch.where(inside, rolled[..., :length], tensor)
