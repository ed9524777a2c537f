"""Whether verl needs these patches: what its code does, or mentions. Light to import."""

from __future__ import annotations

import inspect
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

from ..bridges.assertion import asserts_vanilla
from ..environment import Environment
from ..patching import Verdict, applicable, not_needed


def mentions(function: Any, name: str) -> bool:
    """Whether the code of ``function`` has ``name`` as an identifier, key or keyword; comments do not count."""
    return _in_code(inspect.unwrap(function).__code__, name)


def _in_code(code: CodeType, name: str) -> bool:
    if name in code.co_names or name in code.co_varnames:
        return True
    return any(
        _in_code(constant, name)
        if isinstance(constant, CodeType)
        else constant == name or (isinstance(constant, tuple) and name in constant)
        for constant in code.co_consts
    )


def decide_mtp_config(environment: Environment, module: ModuleType) -> Verdict:
    from .mtp_config import stays_disabled, unknown_counts

    check = inspect.unwrap(module.check_mtp_config)  # the gate around it would take the probe for a job
    missing = []
    unknown = unknown_counts(check)
    if unknown:
        missing.append(f"check_mtp_config finds no MTP layers in text_config under {', '.join(unknown)}")
    if not stays_disabled(check):
        missing.append("it leaves a bridge that reads the config file again to enable MTP")
    if missing:
        return applicable("; ".join(missing))
    return not_needed("check_mtp_config finds every name of the layer count, and overrides what bridges read")


def decide_loss_mask(environment: Environment, module: ModuleType) -> Verdict:
    if mentions(module.MegatronEngineWithLMHead.forward_step, "response_attention_mask"):
        return applicable("for first tokens alone: verl aligns the mask itself")
    return applicable("forward_step hands the mask over as it stands in the batch")


def decide_value_head(environment: Environment, module: ModuleType) -> Verdict:
    forward = inspect.unwrap(module.get_mcore_forward_no_padding_fn)(SimpleNamespace(architectures=["any"]))
    if "enable_mtp" in inspect.signature(forward).parameters:
        return not_needed("the forward function takes enable_mtp")
    return applicable("the forward function takes no enable_mtp")


def decide_forward_only(environment: Environment, module: ModuleType) -> Verdict:
    if mentions(module.MegatronEngineWithLMHead.forward_step, "forward_only"):
        return not_needed("forward_step looks at forward_only")
    return applicable("forward_step never looks at forward_only")


def decide_legacy(environment: Environment, module: ModuleType) -> Verdict:
    init_config = module.MegatronWorker._init_hf_config_and_tf_config
    if asserts_vanilla(init_config):
        return applicable("it asserts vanilla_mbridge for every model: lifted where the bridge supports MTP")
    if mentions(init_config, "enable_mtp"):
        return applicable()
    return not_needed("MegatronWorker knows no MTP")
