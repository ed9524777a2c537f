"""What SGLang records of a process is the target's: a drafter neither sets it up again nor writes to it.

SGLang keeps one capturer of routed experts (router replay), one of indexer top-k and one recorder of expert
distribution for all models of a scheduler's process. Up to 0.5.20 a drafter's model runner installs the first anew,
its layers write into it (they are numbered from 0 as the target's are), and the end of its forward pass copies what
lies there to the rows of its own batch. From 0.5.21 on SGLang leaves drafters out of the first, not of the others.

Three things keep a drafter out. Its runner installs nothing. While its runner or its model runs, nothing is recorded:
CUDA graphs of drafters are captured through ``runner.forward`` and ``runner.model.forward``, so no graph of theirs
holds a write. And the target's capturer looks at what comes in spite of both (:class:`_Guard`). Nothing of it happens
in a process without a drafter, or without a record.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from ...environment import Environment
from ...patching import Patch, Target, Verdict, applicable, around, not_needed, unsupported

RUNNER: Final = "sglang.srt.model_executor.model_runner"
#: Engine arguments with which something is recorded.
RECORDS: Final = (
    "enable_return_routed_experts",
    "enable_return_indexer_topk",
    "expert_distribution_recorder_mode",
    "enable_eplb",
)
_EXPERTS: Final = "get_global_experts_capturer"
_INDEXER: Final = "get_global_indexer_capturer"
_RECORDER: Final = "global_expert_distribution_recorder"  # the getter and the setter have this in their names
_GUARD: Final = "_verl_mtp_guard"


class _Drafting:
    """How many calls of drafters are running in this process, one in the other."""

    depth = 0


@contextmanager
def drafting() -> Iterator[None]:
    """For the time of a drafter's forward pass: nothing is recorded."""
    runner = vars(sys.modules[RUNNER])
    before = runner[f"get_{_RECORDER}"]()
    runner[f"set_{_RECORDER}"](runner["ExpertDistributionRecorder"]())  # whose methods do nothing
    _Drafting.depth += 1
    try:
        yield
    finally:
        _Drafting.depth -= 1
        runner[f"set_{_RECORDER}"](before)


def load_model(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """``ModelRunner.load_model``; from then on a drafter's forward passes leave no record."""
    result = original(runner, *args, **kwargs)
    if runner.is_draft_worker and any(getattr(runner.server_args, name, None) for name in RECORDS):
        for owner in (runner, runner.model):
            owner.forward = _unrecorded(owner.forward)
    return result


def _unrecorded(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)  # SGLang looks at the parameters of a model's forward
    def replacement(*args: Any, **kwargs: Any) -> Any:
        with drafting():
            return forward(*args, **kwargs)

    return replacement


def _init(getter: str, *, copies: bool) -> Callable[..., Any]:
    """A wrapper of the runner's method that installs a capturer: the target's stays when a drafter comes.

    Args:
        getter: SGLang's function that returns the installed capturer.
        copies: see :class:`_Guard`.
    """

    def init(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
        installed = inspect.unwrap(original).__globals__[getter]()
        if not runner.is_draft_worker or not hasattr(installed, "host_cache"):  # nobody captures: None, or a stand-in
            return original(runner, *args, **kwargs)
        if _GUARD not in vars(installed):
            vars(installed)[_GUARD] = _Guard(installed, copies=copies)
        return None

    return init


class _Guard:
    """Stands before the methods of the target's capturer once there is a drafter.

    A forward pass of the target ends with its last layer that is captured. One that ends before that is somebody
    else's, whose layers run neither through ``runner.forward`` nor through ``runner.model.forward``; its rows are not
    the target's. (The replay of a CUDA graph calls nothing here, and counts as the target's.)

    Args:
        capturer: SGLang's, as it was installed for the target.
        copies: what SGLang will copy to the host later becomes a copy now. Up to 0.5.20 it is a part of the buffer
            into which the next forward pass writes.
    """

    def __init__(self, capturer: Any, *, copies: bool) -> None:
        self._capture, self._on_forward_end = capturer.capture, capturer.on_forward_end
        self._buffer, self._copies = capturer.device_cache.buffer, copies
        self._highest: int | None = None
        self._last: int | None = None  # since the last forward pass ended
        capturer.capture, capturer.on_forward_end = self.capture, self.on_forward_end

    def capture(self, layer_id: Any, *args: Any, **kwargs: Any) -> None:
        """``capture`` of one layer, if it is not a drafter's."""
        if _Drafting.depth:
            return
        if layer_id is not None:
            self._last = int(layer_id)
            self._highest = max(self._last, self._highest if self._highest is not None else self._last)
        self._capture(layer_id, *args, **kwargs)

    def on_forward_end(self, *args: Any, **kwargs: Any) -> Any:
        """``on_forward_end`` of a forward pass, if it is not a drafter's."""
        if _Drafting.depth:
            return None
        last, self._last = self._last, None
        if last is not None and last != self._highest:
            return None
        output = self._on_forward_end(*args, **kwargs)
        if self._copies and output is not None and _shares(output.topk, self._buffer):
            output.topk, output.out_cache_loc = output.topk.clone(), output.out_cache_loc.clone()
        return output


def _shares(tensor: Any, buffer: Any) -> bool:
    return bool(tensor.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr())


def _names(function: Any) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_names if code is not None else ()


def _decide(method: str, getter: str, *, read_by: str = "") -> Callable[[Environment, ModuleType], Verdict]:
    """A probe of a runner's method that installs a capturer.

    Args:
        method: of ``ModelRunner``.
        getter: of the capturer.
        read_by: another method that has to leave drafters out too.
    """

    def decide(environment: Environment, module: ModuleType) -> Verdict:
        runner = module.ModelRunner
        methods = [getattr(runner, name) for name in (method, read_by) if name]
        if all("is_draft_worker" in _names(found) for found in methods):
            return not_needed("SGLang's model runner leaves drafters out")
        missing = [name for name in (getter,) if name not in vars(module)]
        if "is_draft_worker" not in inspect.signature(inspect.unwrap(runner.__init__)).parameters:
            missing.append("ModelRunner(is_draft_worker=)")
        if missing:
            return unsupported(
                found=f"a model runner without {', '.join(missing)}",
                expected="one that knows whether it is a drafter's, and the capturer of its process",
                advice="MTP together with this record is refused when a server starts",
            )
        return applicable()

    return decide


def _decide_load(environment: Environment, module: ModuleType) -> Verdict:
    wanted = (f"get_{_RECORDER}", f"set_{_RECORDER}", "ExpertDistributionRecorder")
    missing = [name for name in wanted if name not in vars(module)]
    missing += [f"ModelRunner.{name}" for name in ("load_model", "forward") if not hasattr(module.ModelRunner, name)]
    if missing:
        return unsupported(
            found=f"{RUNNER} without {', '.join(missing)}",
            expected="SGLang's recorder of expert distribution, and a model runner with load_model and forward",
            advice="MTP together with a record of SGLang's is refused when a server starts",
        )
    return applicable()


#: The patch that keeps a drafter's forward passes out of every record.
FORWARD: Final = "rollout.sglang.capturers.forward"
#: The patches that keep a drafter from installing a capturer, by the engine argument that asks for one.
INSTALL: Final = {
    "enable_return_routed_experts": "rollout.sglang.capturers.experts",
    "enable_return_indexer_topk": "rollout.sglang.capturers.indexer",
}

PATCHES: Final[tuple[Patch, ...]] = (
    Patch(
        id=INSTALL["enable_return_routed_experts"],
        target=Target(RUNNER, "ModelRunner.init_routed_experts_capturer"),
        reason="router replay (R3) with an MTP drafter that has experts: the routed experts of the target's first "
        "layers are the drafter's, and with CUDA graphs those of all layers are old",
        upstream="SGLang 0.5.21 leaves drafters out (sgl-project/sglang#26980); delete with 0.5.20",
        decide=_decide("init_routed_experts_capturer", _EXPERTS, read_by="forward"),
        build=around(_init(_EXPERTS, copies=True)),
        absent_ok=True,
    ),
    Patch(
        id=INSTALL["enable_return_indexer_topk"],
        target=Target(RUNNER, "ModelRunner.init_indexer_capturer"),
        reason="indexer top-k of a request (sparse attention) with an MTP drafter: SGLang's capturer is replaced by "
        "the drafter's, and its first layer is the drafter's",
        upstream="no release up to 0.5.23 leaves drafters out; delete when it does, as for the routed experts",
        decide=_decide("init_indexer_capturer", _INDEXER),
        build=around(_init(_INDEXER, copies=False)),
        absent_ok=True,
    ),
    Patch(
        id=FORWARD,
        target=Target(RUNNER, "ModelRunner.load_model"),
        reason="a drafter's forward passes are recorded as the target's: routed experts, indexer top-k, and the "
        "expert distribution by which EPLB places experts",
        upstream="SGLang 0.5.21 for the routed experts; some drafters leave the distribution alone by themselves",
        decide=_decide_load,
        build=around(load_model),
    ),
)
