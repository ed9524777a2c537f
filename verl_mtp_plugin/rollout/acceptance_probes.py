"""What of acceptance the installed verl already has. Light to import."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import iscoroutinefunction, signature, unwrap
from operator import attrgetter
from pathlib import Path
from types import ModuleType

from ..environment import Environment
from ..patching import Verdict, applicable, not_needed, unsupported
from ..verl_fixes.probes import mentions
from . import acceptance


def is_coroutine_function(qualname: str) -> Callable[[Environment, ModuleType], Verdict]:
    """A probe for what is wrapped in a coroutine function: it must be one, or not be there."""

    def decide(environment: Environment, module: ModuleType) -> Verdict:
        try:
            found = attrgetter(qualname)(module)
        except AttributeError:
            return applicable()
        if iscoroutinefunction(found):
            return applicable()
        return unsupported(
            found=f"{qualname} that is no coroutine function", expected="async def", advice="update verl-mtp-plugin"
        )

    return decide


def decide_spec_metrics(environment: Environment, module: ModuleType) -> Verdict:
    function = module.compute_spec_decode_metrics
    if function is not unwrap(function):
        return not_needed("imported from where it is patched already")
    if len(signature(function).parameters) < 3:
        return unsupported(
            found="compute_spec_decode_metrics without one column each for drafts, accepted drafts and verify steps",
            expected="the parameters that verl 0.8 and 0.9 have",
            advice="update verl-mtp-plugin",
        )
    return applicable()


def decide_trainer(environment: Environment, module: ModuleType) -> Verdict:
    if hasattr(module, "compute_spec_decode_metrics"):
        return not_needed("the trainer computes acceptance itself")
    return applicable("the trainer computes no acceptance")


def decide_queue(environment: Environment, module: ModuleType) -> Verdict:
    if hasattr(module.LinkedList, "tolist"):
        return not_needed("lists of a TensorDict have tolist")
    verl = getattr(sys.modules.get("verl"), "__file__", None) or ""
    if not (Path(verl).parent / "trainer" / "main_ppo_sync.py").is_file():
        return not_needed("verl has no trainer that asks them for it")
    return applicable()


def decide_resumed(environment: Environment, module: ModuleType) -> Verdict:
    client = module.FullyAsyncLLMServerClient
    if client.__module__ != module.__name__:
        return not_needed(f"patched in {client.__module__}")
    if mentions(client.generate, acceptance.FIELDS[2]):
        return not_needed("it sums the counts of its requests")
    return applicable("it drops the counts of its requests")


def decide_turn(environment: Environment, module: ModuleType) -> Verdict:
    if mentions(module.ToolAgentLoop._handle_generating_state, "SPEC_DECODE_EXTRA_KEYS"):
        return not_needed("it sums the counts of its turns")
    return applicable("it keeps the counts of the first turn alone")
