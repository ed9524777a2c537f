"""verl's Megatron engine on the CPU: verl must believe in a CUDA device, and :mod:`.cuda` is one.

verl chooses its engine class, its device and its collectives by the accelerator that it detects. With ``torch.cuda``
answered by the CPU all of that may stay as it is on a GPU machine; nothing of the engine itself is stood in for.

* verl >= 0.9 asks its platform registry, which takes CUDA when it detects nothing else. Nothing to do.
* Older verl asks ``torch.cuda.is_available()`` at import and keeps the answer in ``verl.utils.device``.

Megatron's fused CUDA kernels are turned off by :data:`TRANSFORMER_CONFIG`, which goes into the engine's config.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Final

#: For ``engine_config.override_transformer_config``: no fused kernels, no dropout.
TRANSFORMER_CONFIG: Final[dict[str, Any]] = {
    "apply_rope_fusion": False,
    "attention_dropout": 0.0,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "moe_permute_fusion": False,
    "persist_layer_norm": False,
    "use_cpu_initialization": True,
}


def install() -> None:
    """Tell verl that its accelerator is CUDA. After :func:`.cuda.install`; imports verl and its Megatron engine."""
    # Modules that look at import whether there is CUDA (to import flash-attn, for one) must hear that there is none.
    importlib.import_module("verl.workers.engine.megatron.transformer_impl")
    if importlib.util.find_spec("verl.plugin") is None:
        vars(importlib.import_module("verl.utils.device"))["is_cuda_available"] = True
    # Where verl makes the process group itself, its tensors are on the CPU.
    vars(importlib.import_module("verl.utils.distributed"))["get_nccl_backend"] = lambda: "gloo"
