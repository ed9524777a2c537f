"""verl's real clients and agent loop, over servers that answer from a list: samples that take several requests."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

from .scenario import ABORTED, LONG, SHORT, Request
from .trainer import has

#: Where verl has the client that goes on after an abort: 0.9, 0.8.0. None in 0.7.1's wheel.
RESUMING = ("verl.workers.rollout.llm_server", "verl.experimental.fully_async_policy.fully_async_rollouter")


class Method:
    """``handle.method.remote(...)`` of an actor that answers from a list, the last answer for ever."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    async def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class Forgotten:
    """A call that nobody awaits."""

    def remote(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""


def output(request: Request, reason: str, fields: dict[str, Any] | None = None) -> Any:
    from verl.workers.rollout.replica import TokenOutput

    fields = dict(request.fields) if fields is None else fields
    return TokenOutput(token_ids=[7, 8], stop_reason=reason, extra_fields={"global_steps": 1, **fields})


def balancer(*outputs: Any) -> Any:
    """A load balancer that knows one server, which answers with ``outputs``."""
    server = SimpleNamespace(generate=Method(*outputs))
    return SimpleNamespace(
        acquire_server=Method(("server", server)),
        release_server=Forgotten(),
        require_acquire_fields=Method([]),
        require_release_fields=Method([]),
    )


def counts(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sorted(fields.items()) if name.startswith("spec_")}


async def resumed(*outputs: Any) -> dict[str, Any] | None:
    """The counts of one sample that goes on after each abort; None without such a client."""
    for name in RESUMING:
        client_class = getattr(importlib.import_module(name), "FullyAsyncLLMServerClient", None) if has(name) else None
        if client_class is not None:
            break
    else:
        return None
    actor = SimpleNamespace(rollout=SimpleNamespace(name="sglang", full_determinism=False, response_length=64))
    config = SimpleNamespace(actor_rollout_ref=actor, async_training=SimpleNamespace(partial_rollout=True))
    client = client_class(config=config, load_balancer_handle=balancer(*outputs))
    sample = await client.generate("sample", prompt_ids=[1, 2], sampling_params={"max_tokens": 64})
    return {**counts(sample.extra_fields), "tokens": len(sample.token_ids)}


async def turns(*outputs: Any) -> dict[str, Any]:
    """The counts of one sample of as many turns."""
    from verl.experimental.agent_loop import agent_loop, tool_agent_loop

    if hasattr(agent_loop, "AsyncLLMServerManager"):  # 0.7.1
        client: Any = agent_loop.AsyncLLMServerManager.__new__(agent_loop.AsyncLLMServerManager)
        server = SimpleNamespace(generate=Method(*outputs))
        client._load_balancer = SimpleNamespace(acquire_server=Method("server"), release_server=Forgotten())
        client._server_id_to_handle = {"server": server}
    else:
        from verl.workers.rollout.llm_server import LLMServerClient

        rollout = SimpleNamespace(name="sglang", full_determinism=False)
        config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=rollout))
        client = LLMServerClient(config=config, load_balancer_handle=balancer(*outputs))

    async def merge_assistant_tokens(tokens: list[int], answer: list[int], mask: list[int], *_: Any, **__: Any) -> Any:
        return SimpleNamespace(token_ids=tokens + answer), mask + [1] * len(answer), None

    loop = SimpleNamespace(
        ct_merge_assistant_token=merge_assistant_tokens,
        server_manager=client,
        tools={},
        tool_parser=SimpleNamespace(stop_token_ids=[]),
        response_length=1,  # reached: tool calls are not looked for
        max_assistant_turns=None,
        max_user_turns=None,
        interaction_config_file=None,
        enable_continuous_token=False,
    )
    data = SimpleNamespace(
        request_id="sample",
        prompt_ids=[1, 2],
        response_ids=[],
        response_mask=[],
        response_logprobs=[],
        image_data=None,
        video_data=None,
        audio_data=None,
        mm_processor_kwargs=None,
        mm_processor_output=None,
        metrics={},
        extra_fields={},
        assistant_turns=0,
        user_turns=0,
        routed_experts=None,
    )
    for _ in outputs:
        await tool_agent_loop.ToolAgentLoop._handle_generating_state(loop, data, {"max_tokens": 64})
    return {**counts(data.extra_fields), "turns": data.assistant_turns}


async def measure() -> dict[str, Any]:
    """All of them."""
    return {
        "resumed": await resumed(output(LONG, "aborted"), output(ABORTED, "aborted"), output(SHORT, "completed")),
        "resumed_plain": await resumed(output(LONG, "aborted", {}), output(SHORT, "completed", {})),
        "turns": await turns(output(LONG, "completed"), output(SHORT, "completed")),
        "turns_plain": await turns(output(LONG, "completed", {}), output(SHORT, "completed", {})),
    }
