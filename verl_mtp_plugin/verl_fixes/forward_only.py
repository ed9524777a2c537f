"""Passes that train nothing: log-probs, values, evaluation. MTP has no part in them.

Every release of verl up to 0.9.1 prepares labels and loss mask for MTP in them too. megatron-core is then asked for an
MTP loss that nobody will use; with this plugin no MTP layer runs without gradients, and here the preparation goes too:
the engine does what it does with ``mtp.enable_train=False``.
"""

from __future__ import annotations

import copy
from typing import Any


def infer_batch(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """``MegatronEngine.infer_batch``, the one way into a forward-only pass, with MTP off in the engine's config."""
    model_config = engine.model_config
    if not model_config.mtp.enable:
        return original(engine, *args, **kwargs)
    engine.model_config = without_mtp(model_config)
    try:
        return original(engine, *args, **kwargs)
    finally:
        engine.model_config = model_config


def without_mtp(model_config: Any) -> Any:
    """A copy of verl's ``HFModelConfig`` in which MTP is off. The original, which the rollout shares, is untouched."""
    mtp = copy.copy(model_config.mtp)
    vars(mtp).update(enable=False, enable_train=False)  # the dataclass is frozen
    changed = copy.copy(model_config)
    vars(changed)["mtp"] = mtp
    return changed
