"""Which tokens a loss is computed for, and how their hidden states come to a rank and their gradients go back."""

from __future__ import annotations

from typing import Any

import torch


class TokenRows:
    """The trained tokens of one micro-batch as rows, handed out in chunks.

    With tensor parallelism every rank of the group needs every trained token, since each holds a part of the
    vocabulary. Without sequence parallelism every rank has all hidden states; with it a rank has one part of the
    sequence, and each chunk is gathered from all parts and its gradient summed back onto them. Labels and mask are
    whole on every rank, so all ranks agree on the chunks without communicating.

    Args:
        hidden: [s, b, h]; with sequence parallelism this rank's part [s / tp, b, h].
        labels: [b, s], token ids.
        mask: [b, s]; a token whose mask is zero costs nothing.
        group: the tensor-parallel process group, None without tensor parallelism.
        sequence_parallel: whether ``hidden`` is a part of the sequence.
    """

    def __init__(
        self, hidden: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, group: Any, sequence_parallel: bool
    ) -> None:
        self.group = group
        self._parts = torch.distributed.get_world_size(group) if group is not None and sequence_parallel else 1
        self._part = torch.distributed.get_rank(group) if self._parts > 1 else 0
        _check_shapes(hidden, labels, mask, self._parts)
        mask, labels = (tensor.transpose(0, 1).reshape(self._parts, -1) for tensor in (mask, labels))
        per_part = [part.nonzero().squeeze(1) for part in mask]  # waits for the device
        self.counts = [len(rows) for rows in per_part]
        self.index = per_part[self._part]  # [n] of the flattened [s * b]
        self._labels = [part[rows] for part, rows in zip(labels, per_part)]
        self._mask = [part[rows] for part, rows in zip(mask, per_part)]

    def label_range(self) -> tuple[int, int]:
        """The lowest and the highest label of all trained tokens; 0 and 0 if there is none."""
        labels = torch.cat(self._labels)
        if not len(labels):
            return 0, 0
        lowest, highest = torch.stack(labels.aminmax()).tolist()
        return int(lowest), int(highest)

    def ranges(self, chunk_tokens: int) -> list[range]:
        """The chunks, as positions in every part's list of trained tokens; the same list on every rank."""
        length, longest = max(1, chunk_tokens // self._parts), max(self.counts)
        return [range(start, min(start + length, longest)) for start in range(0, longest, length)]

    def labels_and_mask(self, chunk: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels [n] and mask [n] of a chunk, in the order of :meth:`gather`."""
        span = slice(chunk.start, chunk.stop)
        return torch.cat([part[span] for part in self._labels]), torch.cat([part[span] for part in self._mask])

    def gather(self, states: torch.Tensor, chunk: range) -> torch.Tensor:
        """The hidden states [n, h] of a chunk, from all parts. ``states`` [s * b, h] is this rank's part."""
        own = states[self.index[chunk.start : chunk.stop]]
        if self._parts == 1:
            return own
        sent = states.new_zeros(len(chunk), states.shape[1])
        sent[: len(own)] = own
        received = states.new_empty(self._parts * len(chunk), states.shape[1])
        torch.distributed.all_gather_into_tensor(received, sent, group=self.group)
        return torch.cat([part[:n] for part, n in zip(received.chunk(self._parts), self._sizes(chunk))])

    def give_back(self, gradient: torch.Tensor, chunk: range) -> torch.Tensor:
        """Sum a chunk's gradient [n, h] over the vocabulary's shards; this rank's rows of it [m, h]."""
        if self.group is None:
            return gradient
        if self._parts == 1:
            torch.distributed.all_reduce(gradient, group=self.group)
            return gradient
        sent = gradient.new_zeros(self._parts, len(chunk), gradient.shape[1])
        for place, rows in zip(sent, gradient.split(self._sizes(chunk))):
            place[: len(rows)] = rows
        received = gradient.new_empty(len(chunk), gradient.shape[1])
        torch.distributed.reduce_scatter_tensor(received, sent.flatten(0, 1), group=self.group)
        return received[: self._sizes(chunk)[self._part]]

    def _sizes(self, chunk: range) -> list[int]:
        return [max(0, min(count, chunk.stop) - chunk.start) for count in self.counts]


def _check_shapes(hidden: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, parts: int) -> None:
    length, rows = hidden.shape[0] * parts, hidden.shape[1]
    if labels.shape != (rows, length) or mask.shape != (rows, length):
        raise ValueError(
            f"hidden states for {length} positions of {rows} rows, but labels {list(labels.shape)} and mask "
            f"{list(mask.shape)}: expected [b, s] = [{rows}, {length}] for both"
        )
