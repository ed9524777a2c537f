"""The patches that keep fused log-prob kernels on with MTP, as data: light to import."""

from __future__ import annotations

from typing import Any, Final

from ...patching import Patch, PatchSet, Target, around

ENGINE: Final = "verl.workers.engine.megatron.transformer_impl"
_REASON: Final = "with MTP enabled verl turns fused kernels off, and the logits of every micro-batch are materialised"
_UPSTREAM: Final = "delete when MegatronEngine._maybe_enable_fused_kernels no longer looks at mtp.enable"


def _keep(original: Any, engine: Any) -> Any:
    from .engine import keep_fused_kernels

    return keep_fused_kernels(original, engine)


def _forward_fn(original: Any, *args: Any, **kwargs: Any) -> Any:
    from .output import with_fused_output

    return with_fused_output(original(*args, **kwargs))


FUSED: Final = PatchSet(
    "training.fused",
    (
        Patch(
            id="training.fused.engine",
            target=Target(ENGINE, "MegatronEngine._maybe_enable_fused_kernels"),
            reason=_REASON,
            upstream=_UPSTREAM,
            build=around(_keep),
            absent_ok=True,
        ),
        Patch(
            id="training.fused.forward",
            target=Target("verl.models.mcore", "get_mcore_engine_forward_fn"),
            reason=_REASON,
            upstream=_UPSTREAM,
            build=around(_forward_fn),
            absent_ok=True,  # verl 0.7.1, where the kernels stay off
        ),
    ),
)

PATCHES: Final[tuple[Patch | PatchSet, ...]] = (FUSED,)
