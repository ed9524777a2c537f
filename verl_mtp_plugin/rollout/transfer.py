"""verl's own transfer, and nothing else of its ``update_weights``.

Upstream's body does everything in one go: stop the replicas, release their cache, build the process group, send, let
the workers drop their buffers, resume. It is run on a copy of the manager whose replicas ignore every control, so that
only group, transfer and finalize are left of it, whatever their order in this release.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import inspect
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

logger = logging.getLogger(__name__)

#: ``CheckpointEngine.wire_format`` (verl >= 0.9.0) of engines that send all weights in every sync; the default.
WHOLE_WEIGHTS: Final = "named_tensors"
#: What upstream's body calls on both worker groups; each returns a list of references.
_CALLS: Final = ("update_weights", "execute_checkpoint_engine")


class _Uncontrolled:
    """A replica whose coroutine methods do nothing; everything else is the replica's."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._replica, name)
        return _nothing if inspect.iscoroutinefunction(value) else value


async def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


class UpstreamTransfer:
    """One sync's transfers through ``body``, the coroutine function beneath verl's ``update_weights``.

    verl waits with ``ray.get``, which stops the event loop and cannot be interrupted, so the body runs in a thread of
    its own; one that never comes back does not keep the process from ending.
    """

    def __init__(
        self,
        body: Callable[..., Coroutine[Any, Any, Any]],
        manager: Any,
        replicas: Sequence[Any],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        ray: Any,
        answer_s: float,
    ) -> None:
        self._body, self._manager, self._replicas, self._arguments = body, manager, replicas, arguments
        self._ray, self._answer_s = ray, answer_s
        self._groups: list[Any] = []
        self._started: list[Any] = []  # references of the workers' calls in this attempt
        # The senders of differences move their base while they send: after a failure the difference is gone.
        self.repeatable = getattr(manager.backend_cls, "wire_format", WHOLE_WEIGHTS) == WHOLE_WEIGHTS

    async def run(self) -> Any:
        """Build the group, send, finalize; what verl returns."""
        self._groups, self._started = [], []
        view = copy.copy(self._manager)
        view.replicas = [_Uncontrolled(replica) for replica in self._replicas]
        name = "actor_wg" if hasattr(view, "actor_wg") else "trainer"  # renamed in verl 0.9.0
        trainer = _noted(copy.copy(getattr(view, name)), self._started)
        setattr(view, name, trainer)

        def build_process_group(rollout: Any, *args: Any, **kwargs: Any) -> Any:
            self._groups = [trainer, _noted(rollout, self._started)]
            return type(view).build_process_group(view, rollout, *args, **kwargs)

        view.build_process_group = build_process_group
        args, kwargs = self._arguments
        return await _in_thread(lambda: asyncio.run(self._body(view, *args, **kwargs)))

    async def finalize(self) -> bool:
        """Let all workers of the failed attempt drop their buffers. Whether each has answered, be it with an error.

        verl raises the first worker's error while the others go on; one that is still sending or receiving keeps its
        buffers, and would take the next attempt's messages for its own.
        """
        return bool(await _in_thread(self._finalize))

    def _finalize(self) -> bool:
        end = time.monotonic() + self._answer_s
        if not self._answered(self._started, end):
            return False
        pending: list[Any] = []
        for group in self._groups:
            try:
                pending += group.execute_checkpoint_engine(["finalize"] * group.world_size)
            except Exception as error:  # a worker that is dead has no buffers either
                logger.warning("verl-mtp-plugin: finalize after a failed weight transfer: %s", error)
        return self._answered(pending, end)

    def _answered(self, calls: Sequence[Any], end: float) -> bool:
        if not calls:
            return True
        _, silent = self._ray.wait(list(calls), num_returns=len(calls), timeout=max(0.0, end - time.monotonic()))
        return not silent


def _noted(group: Any, started: list[Any]) -> Any:
    """The worker group itself, which from now on adds the references of its calls to ``started``."""

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            references = method(*args, **kwargs)
            if isinstance(references, list):
                started.extend(references)
            return references

        return call

    for name in _CALLS:
        setattr(group, name, noting(getattr(group, name)))
    return group


def _in_thread(work: Callable[[], Any]) -> asyncio.Future[Any]:
    """Run ``work`` in a daemon thread, with this task's context variables."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return  # nobody waits for it any more
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def run() -> None:
        try:
            value, error = context.run(work), None
        except BaseException as caught:
            value, error = None, caught
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="verl-mtp weight transfer", daemon=True).start()
    return future
