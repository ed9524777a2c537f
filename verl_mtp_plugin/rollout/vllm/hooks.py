"""The patches for vLLM, as data: light to import, since they are armed at ``import verl``."""

from __future__ import annotations

import functools
from typing import Any, Final

from ...patching import MISSING, Patch, PatchSet, Target
from ..acceptance_probes import is_coroutine_function
from ..coroutines import around_async, later
from . import probes

SERVER: Final = "verl.workers.rollout.vllm_rollout.vllm_async_server"
ADAPTER: Final = "verl.workers.rollout.vllm_rollout.vllm_rollout"
ENGINE: Final = "vllm.v1.engine.async_llm"


def _method(module: str, name: str) -> Any:
    """A builder around the method, or of one where there is none (verl 0.7.1)."""
    build = around_async(later(f"{__package__}.{module}", name))

    def made(original: Any) -> Any:
        if original is not MISSING:
            return build(original)

        async def method(self: Any, *args: Any) -> Any: ...

        method.__name__, method.__qualname__ = name, f"vLLMHttpServer.{name}"
        return build(method)

    return made


def _own(module: str, name: str) -> Any:
    """A builder of a method that is all our own."""
    call = later(f"{__package__}.{module}", name)

    def made(original: Any) -> Any:
        async def method(self: Any) -> Any:
            return await call(self)

        method.__name__, method.__qualname__ = name, f"vLLMHttpServer.{name}"
        return method

    return made


def _build_engine(original: Any) -> Any:
    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> None:
        from .acceptance import init_engine

        init_engine(original, *args, **kwargs)

    return replacement


def _build_request_stats(original: Any) -> Any:
    from .acceptance import request_stats

    return request_stats(original)


def _server(name: str, reason: str, upstream: str, *, wrapper: str = "", **options: Any) -> Patch:
    """A patch of one method of verl's server."""
    module = "server_memory" if name.endswith("kv_cache") else "server"
    options.setdefault("decide", is_coroutine_function(f"vLLMHttpServer.{name}"))
    return Patch(
        id=f"rollout.vllm.{name}",
        target=Target(SERVER, f"vLLMHttpServer.{name}"),
        reason=reason,
        upstream=upstream,
        build=_method(module, wrapper or name),
        **options,
    )


KV_CACHE: Final = PatchSet(
    "rollout.vllm.kv_cache",
    (
        _server(
            "abort_all_requests",
            "a server that could not be paused gets new weights while it generates: verl 0.7.1 to 0.9.0 return the "
            "error in a dict that nobody reads",
            "fixed in verl 0.9.1",
        ),
        _server(
            "release_kv_cache",
            "the KV cache of a vLLM server stays where it is during weight syncs (verl 0.7.1 to 0.9.0); in verl 0.9.1 "
            "weights are thrown away before the new ones have come",
            "verl 0.9.1 releases it by vLLM's sleep; delete when verl calls vLLM's release_kv_cache_memory (#44890)",
            creates=True,
        ),
        _server("resume_kv_cache", "counterpart of release_kv_cache", "see release_kv_cache", creates=True),
        _server(
            "resume_generation",
            "generation is resumed although the KV cache is not there, and the engine dies",
            "no release",
            decide=probes.decide_resume,
        ),
        _server(
            "resume_engine_generation",  # what verl 0.9.1's replicas call instead
            "see resume_generation",
            "no release",
            wrapper="resume_generation",
            absent_ok=True,
        ),
        _server(
            "mtp_drain",
            "with free_cache_engine=False requests that were on their way run on half-written weights",
            "plugin code",
            creates=True,
        ),
        _server(
            "mtp_hold",
            "half-written weights are served when somebody resumes generation after a weight sync that failed",
            "plugin code",
            creates=True,
        ),
        _server(
            "generate",
            "requests that arrive during a weight sync run on half-written weights (verl 0.9.0 with vLLM >= 0.18); "
            "verl 0.8.0 raises AttributeError('request_spec_decode_stats') for each, and no verl shows acceptance",
            "verl 0.9.1 for the first, no release for the others",
        ),
    ),
)

SLEEP_LEVEL: Final = Patch(
    id="rollout.vllm.sleep_level",
    target=Target(SERVER, "vLLMHttpServer.sleep"),
    reason="the drafter loses its weights when a hybrid server sleeps: what the trainer does not send stays random",
    upstream="verl 0.9.0; delete when that is the oldest supported one",
    decide=probes.decide_sleep,
    build=_method("sleep_level", "sleep"),
)

PAUSE: Final = Patch(
    id="rollout.vllm.pause_generation",
    target=Target(ENGINE, "AsyncLLM.pause_generation"),
    reason="with vLLM >= 0.33 no verl up to 0.9.1 can pause a server: it passes wait_for_inflight_requests",
    upstream="delete when verl passes mode",
    decide=probes.decide_pause,
    absent_ok=True,  # before vLLM 0.12
    build=around_async(later(f"{__package__}.kv_cache", "pause_generation")),
)

ACCEPTANCE: Final = PatchSet(
    "rollout.vllm.acceptance",
    (
        Patch(
            id="rollout.vllm.acceptance.engine",
            target=Target(ENGINE, "AsyncLLM.__init__"),
            reason="no acceptance of drafts with vLLM: verl looks for numbers that vLLM does not have by request",
            upstream="no release; delete when vLLM reports them by request in all supported releases",
            build=_build_engine,
        ),
        Patch(
            id="rollout.vllm.acceptance.request",
            target=Target("vllm.v1.metrics.stats", "RequestStateStats.request_spec_decode_stats"),
            reason="verl 0.8.0 raises AttributeError('request_spec_decode_stats') for each request",
            upstream="verl 0.9.0 warns instead",
            decide=probes.decide_request_stats,
            build=_build_request_stats,
            creates=True,
        ),
    ),
)

FEED: Final = (
    Patch(
        id="rollout.vllm.adapter",
        target=Target(ADAPTER, "ServerAdapter.update_weights"),
        reason="a drafter that the trainer does not send keeps its old weights, or random ones, and nobody is told",
        upstream="no release",
        build=around_async(later(f"{__package__}.feed", "update_weights")),
        absent_ok=True,
    ),
    Patch(
        id="rollout.vllm.launch",
        target=Target(SERVER, "vLLMHttpServer.launch_server"),
        reason="verl 0.7.1 hands weights to the target model alone: the drafter keeps its first, or random ones",
        upstream="verl 0.8.0 feeds the drafter; delete when that is the oldest supported one",
        decide=is_coroutine_function("vLLMHttpServer.launch_server"),
        build=around_async(later(f"{__package__}.feed", "launch_server")),
    ),
    Patch(
        id="rollout.vllm.load_format",
        target=Target(SERVER, "vLLMHttpServer.mtp_load_format"),
        reason="with load_format=dummy a frozen drafter is random, and nobody is told",
        upstream="plugin code",
        build=_own("feed", "mtp_load_format"),
        creates=True,
    ),
)

PATCHES: Final[tuple[Patch | PatchSet, ...]] = (KV_CACHE, SLEEP_LEVEL, PAUSE, ACCEPTANCE, *FEED)
