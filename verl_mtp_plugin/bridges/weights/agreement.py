"""One verdict on all ranks: where one of them raises and another goes on, the other waits for it for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ...errors import MissingWeightsError

T = TypeVar("T")


def everywhere(find: Callable[[], Iterable[str]]) -> frozenset[str]:
    """What ``find`` returns on any rank, on every rank. A collective over the default group, if there are several.

    MTP layers are on one pipeline stage alone, and nodes may have copies of their own of a checkpoint.

    Raises:
        MissingWeightsError: ``find`` raised on another rank. Where it did, that error itself is raised.
    """
    found: frozenset[str] = frozenset()
    error: Exception | None = None
    try:
        found = frozenset(find())
    except Exception as raised:  # the others must hear of it
        error = raised
    answers = _gather((found, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for rank, (_, failure) in enumerate(answers):
        if failure is not None:
            raise MissingWeightsError(
                found=f"an error on rank {rank} ({failure})",
                expected="all ranks to go on together",
                advice="See the log of that rank.",
            )
    return frozenset().union(*(names for names, _ in answers))


def together(do: Callable[[], T]) -> T:
    """What ``do`` returns here. It raises everywhere if it raises anywhere; a collective like :func:`everywhere`."""
    results: list[T] = []

    def run() -> Iterable[str]:
        results.append(do())
        return ()

    everywhere(run)
    return results[0]


def rank() -> int:
    """This process's rank in the default group."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _gather(answer: Any) -> list[Any]:
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [answer]
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, answer)
    return answers
