"""Acceptance of drafts in every verl, as patches: light to import, since they are armed at ``import verl``."""

from __future__ import annotations

from typing import Any, Final

from ..patching import Patch, PatchSet, Target, around
from . import acceptance_client, acceptance_metrics, acceptance_server
from . import acceptance_probes as probes
from .coroutines import around_async

SGLANG_SERVER: Final = "verl.workers.rollout.sglang_rollout.async_sglang_server"
CLIENTS: Final = "verl.workers.rollout.llm_server"
FULLY_ASYNC: Final = "verl.experimental.fully_async_policy.fully_async_rollouter"
LOOPS: Final = "verl.experimental.agent_loop"


SERVER: Final = PatchSet(
    "rollout.acceptance.server",
    (
        Patch(
            id="rollout.acceptance.server.generate",
            target=Target(SGLANG_SERVER, "SGLangHttpServer.generate"),
            reason="verl 0.7.1 knows no acceptance of drafts; verl 0.8.0 raises KeyError('spec_draft_token_num') for "
            "each request that ends before its first verify step, and for all with SGLang >= 0.5.11; verl 0.9 invents "
            "drafts for the former, and shows 0 accepted drafts for the latter, whatever SGLang accepts",
            upstream="no release; delete when verl reads the names of the oldest supported SGLang, and no sample "
            "without a verify step counts",
            decide=probes.is_coroutine_function("SGLangHttpServer.generate"),
            build=around_async(acceptance_server.generate),
        ),
        Patch(
            id="rollout.acceptance.server.meta_info",
            target=Target("sglang.srt.managers.tokenizer_manager", "TokenizerManager.generate_request"),
            reason="the numbers of accepted drafts have other names in each SGLang (0.5.10, 0.5.11, 0.5.12, 0.5.21)",
            upstream="see rollout.acceptance.server.generate",
            build=around(acceptance_server.generate_request),
        ),
    ),
)

#: Where verl computes acceptance itself: from 0.8.0 on, in each module under a name of its own.
SPEC_METRICS: Final = tuple(
    Patch(
        id=f"rollout.acceptance.{name}",
        target=Target(module, "compute_spec_decode_metrics"),
        reason="acceptance is a mean of ratios in which requests that verified nothing count as zero",
        upstream="no release; delete when verl divides sums",
        decide=probes.decide_spec_metrics,
        build=around(acceptance_metrics.compute_spec_decode_metrics),
        absent_ok=True,
    )
    for name, module in (
        ("ray_trainer", "verl.trainer.ppo.ray_trainer"),
        ("main_ppo_sync", "verl.trainer.main_ppo_sync"),
        ("trainer_v1", "verl.trainer.ppo.v1.trainer_base"),
    )
)
#: The trainers that compute none: verl 0.7.1's, and in all releases the base of separation, one-step-off and fully
#: asynchronous training.
DATA_METRICS: Final = tuple(
    Patch(
        id=f"rollout.acceptance.{name}",
        target=Target(module, "compute_data_metrics"),
        reason="no acceptance in the metrics of this trainer",
        upstream="verl 0.8.0 for ray_trainer, no release for the others",
        decide=probes.decide_trainer,
        build=around(acceptance_metrics.compute_data_metrics),
        absent_ok=True,
    )
    for name, module in (
        ("ray_trainer_data", "verl.trainer.ppo.ray_trainer"),
        ("separation", "verl.experimental.separation.ray_trainer"),
    )
)
QUEUE: Final = Patch(
    id="rollout.acceptance.queue",
    target=Target("tensordict.utils", "LinkedList.tolist"),
    reason="verl 0.8.0's main_ppo_sync with MTP rollout ends in AttributeError: 'LinkedList' object has no attribute "
    "'tolist', when it reads the counts of the first step",
    upstream="verl 0.9.0; delete when that is the oldest supported one",
    decide=probes.decide_queue,
    build=lambda original: acceptance_metrics.plain_list,
    creates=True,
    absent_ok=True,
)


def _client(name: str, module: str, qualname: str, wrapper: Any, decide: Any = None) -> Patch:
    """A patch of one step between server and trainer that keeps the counts of some requests only."""
    return Patch(
        id=f"rollout.acceptance.{name}",
        target=Target(module, qualname),
        reason="of a sample that took several requests (resumed after a weight sync; turns, with verl 0.7.1) the "
        "counts of all, or of all but the first, are lost",
        upstream="verl 0.8.0 sums over turns; no release sums over resumed requests",
        build=around_async(wrapper),
        absent_ok=True,
        decide=decide or probes.is_coroutine_function(qualname),
    )


CLIENT: Final = (
    _client("request", CLIENTS, "LLMServerClient.generate", acceptance_client.one_request),
    _client(
        "resumed",
        CLIENTS,
        "FullyAsyncLLMServerClient.generate",
        acceptance_client.resumed_request,
        probes.decide_resumed,
    ),
    _client(
        "resumed_0_8",
        FULLY_ASYNC,
        "FullyAsyncLLMServerClient.generate",
        acceptance_client.resumed_request,
        probes.decide_resumed,
    ),
    _client("request_0_7", f"{LOOPS}.agent_loop", "AsyncLLMServerManager.generate", acceptance_client.one_request),
    _client(
        "turn",
        f"{LOOPS}.tool_agent_loop",
        "ToolAgentLoop._handle_generating_state",
        acceptance_client.turn,
        probes.decide_turn,
    ),
)

PATCHES: Final[tuple[Patch | PatchSet, ...]] = (SERVER, *SPEC_METRICS, *DATA_METRICS, QUEUE, *CLIENT)
