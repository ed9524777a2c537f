"""mbridge 0.15.1 reads ``rope_theta`` off the HF config, where transformers 5 keeps it within ``rope_parameters``.

verl >= 0.9 copies it to the top, though only right before the model is built: too late for DeepSeek-V3, whose bridge
wants it for the config, and for asking MiMo's bridge whether it can build MTP.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from ...environment import Environment
from ...patching import Patch, PatchSet, Target, Verdict, applicable, around, not_needed

MODULE: Final = "mbridge.core.llm_bridge"


def _init(original: Callable[..., None], bridge: Any, hf_config: Any, *args: Any, **options: Any) -> None:
    rope = getattr(hf_config, "rope_parameters", None) or {}
    if not hasattr(hf_config, "rope_theta") and "rope_theta" in rope:
        hf_config.rope_theta = rope["rope_theta"]
    original(bridge, hf_config, *args, **options)


def _reads_it_at_the_top(environment: Environment, module: ModuleType) -> Verdict:
    if "rope_theta" in inspect.unwrap(module.LLMBridge._get_gptmodel_args).__code__.co_names:
        return applicable("LLMBridge reads hf_config.rope_theta")
    return not_needed("LLMBridge does not read hf_config.rope_theta")


PATCHES: Final[tuple[Patch | PatchSet, ...]] = (
    Patch(
        id="bridge.mbridge_rope",
        target=Target(MODULE, "LLMBridge.__init__"),
        reason="with transformers 5 mbridge 0.15.1 ends in AttributeError: no attribute 'rope_theta'",
        upstream="fixed on mbridge's main after 0.15.1; delete when 0.15.1 is no longer supported",
        decide=_reads_it_at_the_top,
        build=around(_init),
    ),
)
