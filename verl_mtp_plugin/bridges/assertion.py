"""The assertion that MTP needs ``vanilla_mbridge``, in verl's git between 0.7.0 and 0.7.1; no release has it.

It stands in ``MegatronWorker._init_hf_config_and_tf_config`` before the bridge is made, and holds for every model. It
is lifted there, and the question is asked of the bridge itself as soon as the method has made it
(:func:`.engine.demand`): no weights are loaded by then.
"""

from __future__ import annotations

import inspect
from typing import Any

from ..view import View


def asserts_vanilla(method: Any) -> bool:
    """Whether ``method`` asserts the option: it reads it as an attribute, which it does for nothing else.

    To choose the bridge it is read with a default, ``megatron_config.get("vanilla_mbridge", True)``.
    """
    return "vanilla_mbridge" in inspect.unwrap(method).__code__.co_names


def lifted(megatron_config: Any) -> Any:
    """The config (DictConfig or dataclass) as the assertion wants it; what chooses the bridge still sees the truth."""
    return View(megatron_config, vanilla_mbridge=True)
