"""The drafter of one rollout replica, seen from the worker that sends it the trainer's weights."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from ...errors import WeightSyncError
from ...models.lookup import mtp_names_of
from . import questions
from .checksum import COMPARABLE, Amount, Book, Comparison, Ledger, over_ranks
from .parameters import step_of
from .tensor_names import unit

logger = logging.getLogger(__name__)

_OFF: Final = "Set actor_rollout_ref.model.mtp.plugin.check_drafter=false to serve it unchecked."


class Drafter:
    """What is known of a drafter, from sync to sync.

    Args:
        engine: verl's ``AsyncHttpServerAdapter``.
        replica: its name, for messages.
        hf_config: of the model; tells how its MTP tensors are named.
    """

    def __init__(self, engine: Any, replica: str, hf_config: Any) -> None:
        self.engine = engine
        self._replica = replica
        self._names = mtp_names_of(hf_config)
        self._book = Book(complete=bool(self._names))
        self._wanted: dict[str, set[str]] = {}  # last parts of a name -> dtypes of the drafter's parameters
        self._pending: list[tuple[str, str, int, Any]] = []
        self.answers = False  # whether the scheduler has the plugin
        self.layers = 1  # MTP layers that it runs, each with weights of its own

    # -- before a sync ----------------------------------------------------------------------------------------------

    async def describe(self, *, must_answer: bool) -> None:
        """Ask the scheduler who drafts, and whether weights reach both models.

        Raises:
            WeightSyncError: they would not; or the scheduler does not answer, although it must.
        """
        try:
            found = await questions.ask(self.engine, questions.DESCRIBE)
        except questions.NoAnswerError as error:
            if must_answer:
                raise self._unanswered(error) from error
            logger.warning("%s: whether the drafter gets its weights is not checked: %s", self._replica, error)
            return
        self.answers = True
        self.learn(found)

    def learn(self, schedulers: list[dict[str, Any]]) -> None:
        """Take in what the schedulers say of the drafter.

        Raises:
            WeightSyncError: weights would not reach both models.
        """
        for scheduler in schedulers:
            if scheduler.get("worker") is not None:
                self._refuse_partial(scheduler)
            for parameter in over_ranks(scheduler.get("ranks", [])):
                if parameter.dtype in COMPARABLE:
                    for last in parameter.made_of:
                        self._wanted.setdefault(last, set()).add(parameter.dtype)
                self.layers = max(self.layers, step_of(parameter.name) + 1)

    def _refuse_partial(self, scheduler: dict[str, Any]) -> None:
        missing = [model for model in ("target", "draft") if not scheduler[model]]
        if missing:
            raise WeightSyncError(
                found=f"{self._replica}: SGLang's {scheduler['worker']} would leave out the {missing[0]} model's "
                f"weights ({scheduler['how']})",
                expected="a speculative worker that loads both",
                advice="Use speculative_algorithm=EAGLE with the model's own MTP head, or SGLang >= 0.5.21. "
                "Nothing has been sent.",
            )

    # -- during a sync ----------------------------------------------------------------------------------------------

    def watch(self, weights: Any) -> Any:
        """The same (name, tensor) pairs, sync or async, of which those that may be the drafter's are noted."""
        self._pending = []
        return self._watch_async(weights) if hasattr(weights, "__aiter__") else self._watch(weights)

    def _watch(self, weights: Any) -> Iterator[Any]:
        for name, tensor in weights:
            self._note(name, tensor)
            yield name, tensor

    async def _watch_async(self, weights: Any) -> AsyncIterator[Any]:
        async for name, tensor in weights:
            self._note(name, tensor)
            yield name, tensor

    def _note(self, name: str, tensor: Any) -> None:
        import torch

        from .digest import digest

        name = name.replace(".base_layer.", ".")  # LoRA's, which verl takes out on the way
        path, last = unit(name)
        if last not in self._wanted or hasattr(tensor, "full_tensor"):
            return
        if self._names and name not in self._names:
            return
        if not self._book.may_need(path):
            return
        for dtype in self._wanted[last]:
            self._pending.append((name, dtype, tensor.numel(), digest(tensor, getattr(torch, dtype))))

    # -- after a sync -----------------------------------------------------------------------------------------------

    async def verify(self) -> None:
        """Compare what the drafter holds with what was sent.

        Raises:
            WeightSyncError: it holds something else, or nothing of the drafter was sent.
        """
        try:
            found = await questions.ask(self.engine, questions.DIGEST)
        except questions.NoAnswerError as error:
            raise self._unanswered(error) from error
        compared = self.compare(found)
        if compared.different:
            listed = "; ".join(f"{name} (sent as {', '.join(as_) or 'nothing'})" for name, as_ in _few(compared))
            number = len(compared.held) + len(compared.different)
            raise self._error(
                f"{len(compared.different)} of {number} compared parameters of the drafter do not hold what the "
                f"trainer sent: {listed}"
            )
        if compared.uncompared:
            level = logging.INFO if compared.held else logging.WARNING  # then nothing at all was checked
            logger.log(level, "%s: not comparable: %s", self._replica, ", ".join(compared.uncompared))

    def compare(self, schedulers: list[dict[str, Any]]) -> Comparison:
        """What was noted by :meth:`watch`, against the schedulers' digests.

        Raises:
            WeightSyncError: nothing of the drafter was sent.
        """
        from .digest import as_integers

        sent = Ledger()
        values = as_integers([value for *_, value in self._pending])
        for (name, dtype, numel, _), value in zip(self._pending, values):
            sent.add(name, dtype, Amount(numel, value))
        self._pending = []
        if self._wanted and not sent.amounts:
            named = f" (names that begin with {self._names})" if self._names else ""
            raise self._error(f"the trainer sent none of the drafter's tensors{named}")
        compared = Comparison((), {}, ())
        for scheduler in schedulers:
            compared |= self._book.compare(over_ranks(scheduler["ranks"]), sent)
        return compared

    def _error(self, what: str) -> WeightSyncError:
        return WeightSyncError(
            found=f"{self._replica}: {what}",
            expected="a drafter with the trainer's MTP weights of this sync",
            advice=f"Check that the bridge exports MTP (verl-mtp models) and SGLang's log of the load. {_OFF}",
        )

    def _unanswered(self, error: Exception) -> WeightSyncError:
        return WeightSyncError(
            found=f"{self._replica}: {error}",
            expected="an answer from SGLang's scheduler about its drafter",
            advice=f"Install the plugin where SGLang runs, and see the server's log. {_OFF}",
        )


def _few(compared: Comparison, limit: int = 5) -> list[tuple[str, tuple[str, ...]]]:
    return [(name, tuple(tensors)[:6]) for name, tensors in list(compared.different.items())[:limit]]
