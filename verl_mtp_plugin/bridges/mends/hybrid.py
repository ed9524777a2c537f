"""Hybrid models (Nemotron-H) whose MTP is disabled, through Megatron-Bridge.

Their provider is told that MTP is disabled by ``mtp_num_layers=None``, as verl does it. ``finalize`` then looks at
another field, which says what an MTP layer consists of: Megatron-Bridge 0.6 builds the layers all the same where they
are one that is repeated, and 0.4 and 0.5 end in "can't multiply sequence by non-int of type 'NoneType'".
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any, Final

from ...environment import Environment
from ...patching import Patch, Target, Verdict, applicable, around, not_needed

#: The provider, in Megatron-Bridge 0.6 and before.
PROVIDERS: Final = (
    ("megatron.bridge.models.hybrid.hybrid_provider", "HybridModelProvider"),
    ("megatron.bridge.models.mamba.mamba_provider", "MambaModelProvider"),
)
#: Which layers each MTP layer consists of.
PATTERN: Final = "mtp_hybrid_override_pattern"


def _finalize(original: Any, provider: Any) -> Any:
    """``finalize`` of a provider that has nothing to derive MTP layers from where there shall be none."""
    if provider.mtp_num_layers is None:  # 0 is the default, of which nobody has said that it is meant
        setattr(provider, PATTERN, None)
    return original(provider)


def _patch(module: str, name: str) -> Patch:
    def decide(environment: Environment, found: ModuleType) -> Verdict:
        provider = vars(found).get(name)
        if provider is None or "finalize" not in vars(provider):
            return not_needed(f"{name} has no finalize of its own")
        if PATTERN in inspect.unwrap(provider.finalize).__code__.co_names:
            return applicable(f"finalize looks at {PATTERN} whatever mtp_num_layers is")
        return not_needed(f"finalize does not look at {PATTERN}")

    return Patch(
        id=f"bridge.hybrid_disabled.{name}",
        target=Target(module, f"{name}.finalize"),
        reason="with MTP disabled a Nemotron-H is built with MTP through Megatron-Bridge 0.6, and not at all "
        "(TypeError) through 0.4 and 0.5",
        upstream="no release; delete when finalize leaves mtp_num_layers=None alone",
        decide=decide,
        build=around(_finalize),
        absent_ok=True,
    )


PATCHES: Final = tuple(_patch(module, name) for module, name in PROVIDERS)
