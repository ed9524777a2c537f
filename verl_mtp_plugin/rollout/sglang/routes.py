"""Which of a scheduler's models get the weights on verl's route, ``update_weights_from_tensor``.

Since SGLang 0.5.21 the scheduler loads every model itself. Before, it hands the message to the speculative worker, and
what happens then depends on the worker's class: EAGLE's load the draft and the target, others the draft alone, or have
no such method, which ends the scheduler. Which it is, is found by running the method on an object that only notes what
is called. A worker that leaves out the target, or everything, is mended: each of its models is given the tensors, as
SGLang does since 0.5.21.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

METHOD: Final = "update_weights_from_tensor"
#: The method by which SGLang >= 0.5.21 asks a worker for its models.
RUNNERS: Final = "weight_update_runners"


@dataclass(frozen=True, slots=True)
class Route:
    """What a worker's class does with a message of weights."""

    target: bool
    draft: bool
    how: str  # for a message

    @property
    def whole(self) -> bool:
        """Whether both models get the weights."""
        return self.target and self.draft


class _Witness:
    """Takes every attribute, call and index, and notes the paths of the calls to :data:`METHOD`."""

    def __init__(self, path: tuple[str, ...], calls: list[tuple[str, ...]]) -> None:
        self._path, self._calls = path, calls

    def __getattr__(self, name: str) -> _Witness:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Witness((*self._path, name), self._calls)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[bool, str]:
        if self._path[-1] == METHOD:
            self._calls.append(self._path)
        return True, ""

    def __index__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> _Witness:
        return self

    def __iter__(self) -> Iterator[_Witness]:
        return iter((self,))


class _EmptyMessage:
    """A message without a tensor, for every rank."""

    def __getitem__(self, rank: Any) -> Any:
        from sglang.srt.utils import MultiprocessingSerializer

        return MultiprocessingSerializer.serialize([])


def route_of(worker_class: type) -> Route:
    """What a speculative worker of this class does with weights."""
    if hasattr(worker_class, RUNNERS):
        return Route(True, True, "the scheduler loads each model")
    method = inspect.getattr_static(worker_class, METHOD, None)
    if method is None:
        if hasattr(worker_class, "__getattr__"):
            return Route(True, False, f"{worker_class.__name__} passes the message on to the target's worker")
        return Route(False, False, f"{worker_class.__name__} has no {METHOD}")
    called = touched(method)
    if called is None:
        return Route(True, True, f"{worker_class.__name__}.{METHOD} could not be tried, and is taken at its word")
    target = any(path[0] == "target_worker" for path in called)
    draft = any(path[0] != "target_worker" for path in called)
    return Route(target, draft, f"{inspect.unwrap(method).__qualname__} was tried")


def mends(route: Route) -> bool:
    """Whether such a worker is given :func:`deliver` instead: it leaves out the target, or everything."""
    return not route.target


def touched(method: Callable[..., Any]) -> list[tuple[str, ...]] | None:
    """Attributes of the worker through which the method hands on weights; None if it cannot run on a stand-in."""
    calls: list[tuple[str, ...]] = []
    request = SimpleNamespace(serialized_named_tensors=_EmptyMessage(), load_format=None)
    try:
        method(_Witness((), calls), request)
    except Exception:  # a class of somebody else's, with demands of its own
        return None
    return calls


def draft_runners(worker: Any) -> list[Any]:
    """The model runners of a speculative worker's draft models; [] where the drafter has no weights (n-grams)."""
    if hasattr(type(worker), RUNNERS):
        return [runner for _, runner in worker.weight_update_runners()]
    target = getattr(target_worker(worker), "model_runner", None)
    inner = getattr(worker, "draft_worker", None) or worker
    for name in ("draft_runners", "draft_runner_list", "model_runner_list"):
        runners = [runner for runner in getattr(inner, name, None) or () if runner is not target]
        if runners:
            return runners
    runner = getattr(inner, "draft_runner", None) or getattr(inner, "model_runner", None)
    return [] if runner is None or runner is target else [runner]


def target_worker(worker: Any) -> Any:
    """The target's worker behind a speculative worker; None where it is not to be found."""
    return getattr(worker, "target_worker", None)


class _EveryRunner:
    """A model runner, to a worker that loads one: hands the tensors to several, and stops at the first that fails."""

    def __init__(self, runners: list[Any]) -> None:
        self._runners = runners
        self.weight_updater = self  # where SGLang >= 0.5.16 loads

    def update_weights_from_tensor(self, **message: Any) -> tuple[bool, str]:
        done: tuple[bool, str] = (False, "no model")
        for runner in self._runners:
            done = getattr(runner, "weight_updater", runner).update_weights_from_tensor(**message)
            if not done[0]:
                break
        return done


def deliver(worker: Any, recv_req: Any) -> tuple[bool, str]:
    """Load the draft models and the target, by the method with which the target's worker loads its own."""
    from ...view import View

    target = target_worker(worker)
    if target is None:
        return False, f"{type(worker).__name__} has neither {METHOD} nor a target_worker: nothing was loaded"
    runners = [*draft_runners(worker), target.model_runner]
    method = getattr(type(target), METHOD)
    return method(View(target, model_runner=_EveryRunner(runners)), recv_req)
