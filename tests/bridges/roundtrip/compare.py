"""What came of a checkpoint, next to what it should be."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import torch
from torch import Tensor

from . import expected, faults, layouts
from .bridges import Converted
from .cells import Case
from .held import mtp_layer

#: Of Megatron's config for latent attention, what the scaling of its rope is made of.
ROPE: Final = (
    "rope_type",
    "rotary_base",
    "rotary_scaling_factor",
    "mscale",
    "beta_fast",
    "original_max_position_embeddings",
)


def compared(case: Case, config: dict[str, Any], wanted: dict[str, Tensor], converted: Converted) -> dict[str, Any]:
    """Names, bits and meaning of what Megatron holds and exports, against the checkpoint's."""
    from megatron.core import parallel_state

    model = converted.model
    built = getattr(model, "mtp", None) is not None
    for fault in sorted(case.options & faults.IN_MEGATRON.keys()):
        faults.IN_MEGATRON[fault](model)
    exported = converted.export()
    for fault in sorted(case.options & faults.IN_EXPORT.keys()):
        faults.IN_EXPORT[fault](exported)
    held = mtp_layer(model, parallel_state.get_tensor_model_parallel_group()) if built else {}
    right = expected.tensors(config, wanted)
    copies = layouts.copies(config)
    return {
        "mtp_layers": len(model.mtp.layers) if built else 0,
        "sharded": _sharded(model, case) if built else None,
        "unloaded": converted.unloaded,
        "missing": sorted(wanted.keys() - exported.keys()),
        "extra": sorted(exported.keys() - wanted.keys()),
        "different": _different(wanted, exported),
        "longer": _longer(wanted, exported),
        "copies": {name: _same(exported[name], wanted[of]) for name, of in copies.items() if name in exported},
        "mtp_exported": len(layouts.mtp(config).keys() & exported.keys()),
        "wrong_in_megatron": _different(right, held) + sorted(right.keys() ^ held.keys()) if built else [],
        "digests": {name: _digest(tensor) for name, tensor in held.items() if tensor is not None},
        "rope": {name: getattr(converted.bridge.config, name, None) for name in ROPE},
    }


def _sharded(model: Any, case: Case) -> bool:
    """Whether this rank's eh_proj is its part of the rows."""
    rows, columns = model.mtp.layers[0].eh_proj.weight.shape
    return bool(columns == 2 * rows * case.tensor_parallel)


def _different(wanted: dict[str, Tensor], found: Any) -> list[str]:
    return sorted(name for name in wanted.keys() & found.keys() if not _same(found[name], wanted[name]))


def _longer(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, int]:
    """Rows of what comes back right, and has more of them than it had."""
    made = {}
    for name in wanted.keys() & found.keys():
        rows = wanted[name].shape[0]
        if found[name].shape[0] > rows and _same(found[name][:rows], wanted[name]):
            made[name] = found[name].shape[0]
    return made


def _same(found: Tensor | None, wanted: Tensor) -> bool:
    """Bit for bit, and of the same type and shape."""
    return found is not None and found.dtype is wanted.dtype and torch.equal(found, wanted)


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
