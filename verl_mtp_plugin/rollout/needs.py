"""What the rollout's patches call of verl, SGLang and vLLM besides their targets: by patch, as data.

Methods of the objects that a target hands over are looked up on their classes. What a probe of the patch's own looks
at (whether methods are coroutines, how the scheduler pauses) is not repeated here.
"""

from __future__ import annotations

from typing import Final

from ..patching import Needs

IO: Final = "sglang.srt.managers.io_struct"
MANAGER: Final = "sglang.srt.managers.tokenizer_manager:TokenizerManager"
SERVER: Final = "verl.workers.rollout.sglang_rollout.async_sglang_server"
CLIENT: Final = "verl.workers.rollout.sglang_rollout.http_server_engine:AsyncHttpServerAdapter"
_UPDATERS: Final = ("mixin", "manager")

_MANAGER: Final = (
    Needs(f"{MANAGER}.auto_create_handle_loop", positional=1),
    Needs(f"{MANAGER}.flush_cache", positional=1),
    Needs(MANAGER, attributes=("rid_to_state", "model_update_lock", "is_pause", "is_pause_cond")),
    Needs("sglang.srt.utils.aio_rwlock:RWLock", attributes=("writer_lock", "is_locked")),
)
#: The routes by which weights come (:mod:`.sglang.idle`).
_ROUTES: Final = ("tensor", "distributed", "ipc", "disk")

NEEDS: Final[dict[str, tuple[Needs, ...]]] = {
    "rollout.sglang.memory": _MANAGER,
    **{
        f"rollout.sglang.idle.{route}": (
            *_MANAGER,
            Needs(f"{MANAGER}.abort_request", positional=1, keywords=("abort_all",)),
        )
        for route in _ROUTES
    },
    "rollout.sglang.refusals.job": (Needs(f"{SERVER}:SGLangHttpServer", attributes=("config", "model_config")),),
    "rollout.sglang.server": (
        Needs(f"{IO}:PauseGenerationReqInput", keywords=("mode",)),
        Needs(f"{IO}:ContinueGenerationReqInput", positional=0),
        Needs(f"{MANAGER}.pause_generation", positional=2),
        Needs(f"{MANAGER}.continue_generation", positional=2),
        Needs("sglang.srt.managers.scheduler:Scheduler", optional=True),
    ),
    "rollout.sglang.adapter": (
        Needs(f"{CLIENT}._make_async_request", positional=3),
        Needs(f"{CLIENT}.update_weights_from_tensor"),
        Needs(f"{IO}:BeginWeightUpdateReqInput", keywords=("selector",), optional=True),  # SGLang >= 0.5.21
    ),
    **{
        f"rollout.sglang.{what}.{name}": needs
        for name in _UPDATERS
        for what, needs in (
            ("update", (Needs("sglang.srt.utils:MultiprocessingSerializer.serialize", positional=1),)),
            ("questions", (Needs(f"{IO}:CheckWeightsReqOutput", keywords=("success", "message")),)),
        )
    },
    "rollout.vllm.acceptance.engine": (Needs("vllm.v1.metrics.loggers:StatLoggerBase"),),
}
