"""What is refused before an SGLang server starts: together with MTP, or with ``sync_requests=retract``.

verl hands its engine's arguments, as SGLang has resolved them, to ``_set_envs_and_config`` before a process is
started. That is the earliest moment at which all of them are known, and the error reaches who starts the job. What a
scheduler process sees of the same by itself it refuses again: it may have been started by somebody else.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from ... import runtime
from ...environment import Environment
from ...errors import PatchRequiredError, UnsupportedError
from ...patching import Patch, Target, Verdict, applicable, around, not_needed
from .. import acceptance
from ..acceptance_hooks import SGLANG_SERVER
from . import capturers
from .retraction import RECORDED, can_retract, ignores_pause

logger = logging.getLogger(__name__)

_RETRACT: Final = "retract"
#: Where the class of the capturer is at home: at first (0.5.8, 0.5.10), and since then (0.5.12, 0.5.21).
EXPERTS: Final = (
    ("layers", "sglang.srt.layers.moe.routed_experts_capturer"),
    ("state", "sglang.srt.state_capturer.routed_experts"),
)
#: Event loops beside the two usual ones: module, class, method.
LOOPS: Final = (
    ("sglang.srt.managers.scheduler_pp_mixin", "SchedulerPPMixin", "event_loop_pp"),
    ("sglang.srt.multiplex.multiplexing_mixin", "SchedulerMultiplexMixin", "event_loop_pdmux"),
)
#: Arguments of speculation that have no draft model, whose forward passes could be recorded.
_WITHOUT_MODEL: Final = ("NGRAM",)


#: Set in a server whose job has no MTP, and so in its schedulers: nobody retracts there, whatever the option says.
_WITHOUT_MTP: Final = "VERL_MTP_SERVER_WITHOUT_MTP"


# -- in verl's server, before SGLang's processes start ----------------------------------------------------------------


def remember_job(original: Callable[..., Any], server: Any, *args: Any, **kwargs: Any) -> Any:
    """``SGLangHttpServer.__init__``, and whether its job uses MTP, which the engine's arguments do not say."""
    result = original(server, *args, **kwargs)
    if acceptance.uses_mtp(server.config, server.model_config):
        os.environ.pop(_WITHOUT_MTP, None)
    else:
        os.environ[_WITHOUT_MTP] = "1"
    return result


def _retracts() -> bool:
    """Whether requests of this process's engine are retracted for weight syncs."""
    return runtime.settings().sync_requests == _RETRACT and _WITHOUT_MTP not in os.environ


def set_envs_and_config(original: Callable[[Any], Any], server_args: Any) -> Any:
    """verl's last step before SGLang's processes start, with the arguments that they will get.

    Raises:
        UnsupportedError: they do not go together with MTP, or with ``sync_requests=retract``.
        PatchRequiredError: they do, with a patch that is not in place.
    """
    check(server_args)
    return original(server_args)


def check(server_args: Any) -> None:
    """See :func:`set_envs_and_config`."""
    if _retracts():
        reason = can_retract(arguments=server_args)
        if reason is not None:
            raise refused(reason)
    algorithm = getattr(server_args, "speculative_algorithm", None)
    if algorithm and str(algorithm).upper() not in _WITHOUT_MODEL:
        _check_drafter(server_args)


def refused(reason: str) -> UnsupportedError:
    """The error for an engine, or requests, that cannot be retracted."""
    return UnsupportedError(
        found=f"sync_requests=retract, but {reason}",
        expected="an SGLang that continues retracted requests after a weight sync",
        advice="Set mtp.plugin.sync_requests=abort.",
    )


def _check_drafter(server_args: Any) -> None:
    for argument, patch_id in capturers.INSTALL.items():
        if not getattr(server_args, argument, False):
            continue
        importlib.import_module(capturers.RUNNER)  # what becomes of a patch is known when its module is there
        for needed in (patch_id, capturers.FORWARD):
            _require(needed, argument)
        if moves_accepted(server_args):
            raise UnsupportedError(
                found=f"{argument} with speculative_eagle_topk={server_args.speculative_eagle_topk}",
                expected="a chain of drafts (speculative_eagle_topk=1): of a tree SGLang moves the accepted tokens to "
                "other rows of the KV cache, and what it has recorded of them stays behind",
                advice="Set actor_rollout_ref.model.mtp.speculative_eagle_topk=1, or turn router replay off.",
            )
    if getattr(server_args, "enable_eplb", False):
        logger.warning(
            "verl-mtp-plugin: enable_eplb moves the target's experts, and SGLang looks up the drafter's by the same "
            "table: fewer drafts are accepted after each move, until the next weight sync"
        )


def _require(patch_id: str, argument: str) -> None:
    try:
        runtime.require(patch_id)
    except PatchRequiredError as error:
        raise PatchRequiredError(
            found=f"{argument} with an MTP drafter, and {error.found}",
            expected=f"{patch_id}, without which what SGLang records of the target is the drafter's",
            advice="Turn it (actor_rollout_ref.rollout.enable_rollout_routing_replay) or mtp.enable_rollout off, or "
            "use an SGLang of the matrix.",
        ) from error


def moves_accepted(server_args: Any) -> bool:
    """Whether SGLang moves accepted tokens to other rows of the KV cache: those of trees of drafts, but for the
    workers without overlap, whose pages hold one token."""
    tree = (getattr(server_args, "speculative_eagle_topk", None) or 1) > 1
    in_place = getattr(server_args, "disable_overlap_schedule", False) and getattr(server_args, "page_size", None) == 1
    return tree and not in_place


# -- in the scheduler's process ---------------------------------------------------------------------------------------


def create(original: Any) -> Any:
    """A builder of ``RoutedExpertsCapturer.create``, a static method, that refuses to be retracted from."""
    function = original.__func__ if isinstance(original, staticmethod) else original

    def wrapper(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        capturer = function(*args, **kwargs)
        if hasattr(capturer, "host_cache") and _retracts():
            raise refused(f"{RECORDED['enable_return_routed_experts']} (enable_return_routed_experts)")
        return capturer

    return staticmethod(around(wrapper)(function))


def event_loop(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """An event loop that does not look at a pause.

    Raises:
        UnsupportedError: the engine is paused, or will be to retract requests; this loop would run them meanwhile.
    """
    if _retracts() or (getattr(self, "_engine_paused", False) and _WITHOUT_MTP not in os.environ):
        name = inspect.unwrap(original).__name__
        raise refused(f"SGLang's {name} goes on while the engine is paused")
    return original(self, *args, **kwargs)


def _decide_loop(owner: str, name: str) -> Callable[[Environment, ModuleType], Verdict]:
    def decide(environment: Environment, module: ModuleType) -> Verdict:
        if not ignores_pause(getattr(getattr(module, owner), name)):
            return not_needed("this loop looks at the pause")
        return applicable()

    return decide


#: In verl's server.
SERVER_PATCHES: Final[tuple[Patch, ...]] = (
    Patch(
        id="rollout.sglang.refusals",
        target=Target(SGLANG_SERVER, "_set_envs_and_config"),
        reason="what SGLang cannot do together (retracted requests with router replay or pipeline stages, router "
        "replay with a tree of drafts) shows at the first weight sync, or never",
        upstream="plugin code",
        build=around(set_envs_and_config),
        absent_ok=True,
    ),
    Patch(
        id="rollout.sglang.refusals.job",
        target=Target(SGLANG_SERVER, "SGLangHttpServer.__init__"),
        reason="without MTP sync_requests=retract, which nobody uses then, would refuse a server",
        upstream="plugin code",
        build=around(remember_job),
    ),
)

#: In SGLang's scheduler.
PATCHES: Final[tuple[Patch, ...]] = (
    *(
        Patch(
            id=f"rollout.sglang.retract.experts.{name}",
            target=Target(module, "RoutedExpertsCapturer.create"),
            reason="sync_requests=retract with router replay: tokens that were sampled before a weight sync come back "
            "with the experts of the new weights",
            upstream="no release keeps what was recorded before a retract; delete when it does",
            build=create,
            absent_ok=True,
        )
        for name, module in EXPERTS
    ),
    *(
        Patch(
            id=f"rollout.sglang.retract.{loop}",
            target=Target(module, f"{owner}.{loop}"),
            reason="sync_requests=retract: this loop runs retracted requests while their KV cache is released",
            upstream="sgl-project/sglang#23668 (open in 0.5.23); delete when the loop looks at the pause",
            decide=_decide_loop(owner, loop),
            build=around(event_loop),
            absent_ok=True,
        )
        for module, owner, loop in LOOPS
    ),
)
