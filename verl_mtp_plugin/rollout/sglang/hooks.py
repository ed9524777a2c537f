"""SGLang's patches, as data: light to import, since they are armed at ``import verl``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from ...environment import Environment
from ...patching import MISSING, Patch, PatchSet, Target, Verdict, applicable, unsupported
from ..acceptance_hooks import SGLANG_SERVER
from ..coroutines import around_async, later
from . import adapter, refusals, scheduler

MANAGER: Final = "sglang.srt.managers.tokenizer_manager"
_NEEDS_DRAIN: Final = "no release of verl; delete when its server waits until SGLang is idle"


def _method(module: str, name: str, own: str, wrapper: str | None) -> Callable[[Any], Any]:
    """A builder around an upstream method, or of one of our own, ``module.own``, where there is none."""

    def build(original: Any) -> Any:
        method = _own_method(module, name, own) if original is MISSING else original
        return method if wrapper is None else around_async(later(f"{__package__}.{module}", wrapper))(method)

    return build


def _own_method(module: str, name: str, own: str) -> Any:
    call = later(f"{__package__}.{module}", own)

    async def method(self: Any, *args: Any) -> Any:
        return await call(self, *args)

    method.__name__, method.__qualname__ = name, f"SGLangHttpServer.{name}"
    return method


def _is_coroutine_function(owner: str, name: str) -> Callable[[Environment, ModuleType], Verdict]:
    def decide(environment: Environment, module: ModuleType) -> Verdict:
        found = getattr(getattr(module, owner), name, None)
        if found is None or inspect.iscoroutinefunction(found):
            return applicable()
        return unsupported(
            found=f"{owner}.{name} that is no coroutine function ({found!r})",
            expected="async def",
            advice="this method works as upstream has it; update verl-mtp-plugin",
        )

    return decide


def _manager(name: str, wrapper: str, reason: str, upstream: str) -> Patch:
    return Patch(
        id=f"rollout.sglang.memory.{wrapper}",
        target=Target(MANAGER, f"TokenizerManager.{name}"),
        reason=reason,
        upstream=upstream,
        decide=_is_coroutine_function("TokenizerManager", name),
        build=around_async(later(f"{__package__}.memory", wrapper)),
    )


def _server(
    name: str,
    reason: str,
    upstream: str,
    *,
    wrapper: str | None = None,
    own: str = "",
    module: str = "server",
    creates: bool = False,
) -> Patch:
    return Patch(
        id=f"rollout.sglang.server.{name}",
        target=Target(SGLANG_SERVER, f"SGLangHttpServer.{name}"),
        reason=reason,
        upstream=upstream,
        decide=_is_coroutine_function("SGLangHttpServer", name),
        build=_method(module, name, own or name, wrapper),
        creates=creates,
        absent_ok=not creates,
    )


#: Every release and resume of memory goes through these two, from verl's server and over HTTP from its workers.
MEMORY: Final = PatchSet(
    "rollout.sglang.memory",
    (
        _manager(
            "release_memory_occupation",
            "release",
            "SGLang's scheduler ends itself (AssertionError) when its memory is released while a step is in flight",
            "no release of SGLang up to 0.5.23; delete when it refuses instead",
        ),
        _manager(
            "resume_memory_occupation",
            "resume",
            "SGLang's scheduler ends itself (KeyError) when something is resumed that was not released: verl's wake_up "
            "with free_cache_engine=False, and with a LoRA adapter up to verl 0.9.0",
            "verl 0.9.1 for the adapter; delete when SGLang ignores it",
        ),
    ),
)

SERVER: Final = PatchSet(
    "rollout.sglang.server",
    (
        _server(
            "abort_all_requests",
            "a request that SGLang does not end keeps the server paused for ever; ranks above 0 raise (verl 0.7.1); "
            "servers of verl's git before 0.7.1 cannot be paused",
            "verl 0.8.0 for the ranks; no release for the limit",
            wrapper="abort_all_requests",
            own="stop",
            module="pause",
            creates=True,
        ),
        _server(
            "retract_all_requests",
            "a weight sync ends all requests in flight, although SGLang can continue them",
            "no release of verl retracts",
            module="pause",
            creates=True,
        ),
        _server(
            "resume_generation",
            "a server generates without its KV cache",
            "no release",
            wrapper="resume_generation",
            own="go_on",
            module="pause",
            creates=True,
        ),
        _server("sleep", "nobody knows what was released", _NEEDS_DRAIN, wrapper="release"),
        _server("wake_up", "nobody knows what was resumed", _NEEDS_DRAIN, wrapper="resume"),
        _server(
            "release_kv_cache",
            "verl 0.7.1 has no such method; in later releases nobody knows what was released",
            _NEEDS_DRAIN,
            wrapper="release",
            creates=True,
        ),
        _server("resume_kv_cache", "counterpart of release_kv_cache", _NEEDS_DRAIN, wrapper="resume", creates=True),
        _server(
            "mtp_drain",
            "with free_cache_engine=False weights are written while a step is in flight, which ends SGLang's scheduler",
            "plugin code",
            creates=True,
        ),
        _server(
            "mtp_hold",
            "half-written weights are served when somebody resumes generation after a weight sync that failed",
            "plugin code",
            creates=True,
        ),
        _server("mtp_status", "nobody can see what a server has released", "plugin code", creates=True),
    ),
)

#: Every route of SGLang's by which weights come; verl uses the first.
IDLE: Final = tuple(
    Patch(
        id=f"rollout.sglang.idle.{route}",
        target=Target(MANAGER, f"TokenizerManager.update_weights_from_{route}"),
        reason="SGLang's scheduler ends itself (AssertionError: Cache flush failed) when weights come while a step is "
        "in flight: with free_cache_engine=False in every sync, since nobody waits there",
        upstream="no release of SGLang up to 0.5.21 (0.5.22 answers that the update failed); delete when it waits",
        decide=_is_coroutine_function("TokenizerManager", f"update_weights_from_{route}"),
        build=around_async(later(f"{__package__}.idle", "update")),
        absent_ok=True,
    )
    for route in ("tensor", "distributed", "ipc", "disk")
)

LOAD_FORMAT: Final = Patch(
    id="rollout.sglang.load_format",
    target=Target(SGLANG_SERVER, "SGLangHttpServer.mtp_load_format"),
    reason="with load_format=dummy a frozen drafter is random, and nobody is told",
    upstream="plugin code",
    build=_method("server", "mtp_load_format", "mtp_load_format", None),
    creates=True,
)

PATCHES: Final[tuple[Patch | PatchSet, ...]] = (
    MEMORY,
    SERVER,
    *IDLE,
    *refusals.SERVER_PATCHES,
    LOAD_FORMAT,
    *adapter.PATCHES,
    *scheduler.PATCHES,
)
