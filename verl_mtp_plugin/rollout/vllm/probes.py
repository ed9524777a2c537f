"""What the installed verl and vLLM already do. Light to import."""

from __future__ import annotations

from inspect import signature
from types import ModuleType

from ...environment import Environment
from ...patching import Verdict, applicable, not_needed
from ...verl_fixes.probes import mentions


def decide_sleep(environment: Environment, module: ModuleType) -> Verdict:
    sleep = getattr(module.vLLMHttpServer, "_sleep_hybrid", module.vLLMHttpServer.sleep)
    if hasattr(module.vLLMHttpServer, "_resolve_sleep_level") or mentions(sleep, "mtp"):
        return not_needed("sleep looks at mtp")
    return applicable("sleep never looks at mtp")


def decide_resume(environment: Environment, module: ModuleType) -> Verdict:
    if hasattr(module.vLLMHttpServer, "resume_engine_generation"):
        return not_needed("it goes through resume_engine_generation")
    return applicable()


def decide_pause(environment: Environment, module: ModuleType) -> Verdict:
    if "wait_for_inflight_requests" in signature(module.AsyncLLM.pause_generation).parameters:
        return not_needed("vLLM takes wait_for_inflight_requests")
    return applicable("vLLM takes no wait_for_inflight_requests")


def decide_request_stats(environment: Environment, module: ModuleType) -> Verdict:
    if "request_spec_decode_stats" in getattr(module.RequestStateStats, "__dataclass_fields__", {}):
        return not_needed("vLLM counts drafts by request")
    return applicable("vLLM counts drafts for its whole engine")
