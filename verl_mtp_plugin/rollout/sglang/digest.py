"""A digest of a tensor's numbers that does not depend on where they lie. Needs torch.

It is the sum over all elements of a mixed 64-bit word of the element's bits, modulo 2**64. So the digests of a
tensor's shards, or of the parts of a fused tensor, add up to the digest of the whole, whatever the layout, and zeros
that pad a shard count for nothing. Equal digests mean that the same numbers are there, bit for bit and as often (but
for one chance in 2**64); not that they are in the same places.
"""

from __future__ import annotations

from typing import Final

import torch

#: Elements that are mixed at a time: 64 MiB of temporary memory on a GPU, and as fast as more (H200: 36 elements/ns).
CHUNK: Final = 1 << 22
#: Odd multipliers of splitmix64, as signed words.
_FIRST: Final = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND: Final = 0x94D049BB133111EB - (1 << 64)
_LOW: Final = (1 << 32) - 1
_WORDS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The digest of a tensor of any shape, as a scalar int64 tensor where it was computed.

    Args:
        dtype: cast to this first, as loading into a parameter of this type would.
    """
    device = torch.device("cuda") if tensor.device.type == "cpu" and torch.cuda.is_available() else tensor.device
    total = torch.zeros((), dtype=torch.int64, device=device)
    for chunk in tensor.detach().reshape(-1).split(CHUNK):
        numbers = chunk.to(device=device, dtype=dtype or chunk.dtype)
        words = numbers.view(_WORDS[numbers.element_size()]).to(torch.int64, copy=True)
        words.mul_(_FIRST)
        words.bitwise_xor_((words >> 32).bitwise_and_(_LOW))  # torch shifts the sign in
        words.mul_(_SECOND)
        total += words.sum()
    return total


def as_integers(digests: list[torch.Tensor]) -> list[int]:
    """The values of scalar digests, from one transfer for each device."""
    if not digests:
        return []
    home = digests[0].device
    values: list[int] = torch.stack([value.to(home) for value in digests]).tolist()
    return [value % (1 << 64) for value in values]
