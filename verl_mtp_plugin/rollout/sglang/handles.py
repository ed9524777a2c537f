"""One open per IPC handle, however many models read the tensor (sgl-project/sglang#17870).

A CUDA IPC handle may be opened once for each time it was sent: the reader that closes it first tells the sender that
the memory is free. SGLang opens it anew for the draft and for the target. Here the tensor stays with the message it
came in, until the last model has read it or the message is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from ...environment import Environment
from ...patching import Verdict, applicable, not_needed

CLASS: Final = "LocalSerializedTensor"
#: Where the tensors of a message are kept, in the message: by rank, with the number of models that have still to read.
_OPENED: Final = "_verl_mtp_opened"


class _Readers:
    """How many models read each tensor of the update that runs now; None where that is not known."""

    count: int | None = None


@contextmanager
def read_by(count: int) -> Iterator[None]:
    """For the time of one update: every tensor is read by ``count`` models, and dropped with the last."""
    before, _Readers.count = _Readers.count, count
    try:
        yield
    finally:
        _Readers.count = before


def get(original: Callable[[Any, int], Any], message: Any, rank: int) -> Any:
    """``LocalSerializedTensor.get``: the tensor of this rank, opened by the first model that asks."""
    opened = vars(message).setdefault(_OPENED, {})
    tensor, left = opened.pop(rank, None) or (original(message, rank), _Readers.count)
    if left is None or left > 1:
        opened[rank] = (tensor, None if left is None else left - 1)
    return tensor


def decide(environment: Environment, module: ModuleType) -> Verdict:
    """SGLang moved the class to another module in 0.5.16, and the old name may still lead to it."""
    home = getattr(module, CLASS).__module__
    if home != module.__name__:
        return not_needed(f"{CLASS} is at home in {home}")
    return applicable()
