"""Acceptance of a sample that took several requests: resumed after weight syncs, or with turns between tool calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from . import acceptance
from .acceptance import Counts

_REQUESTS: Final[ContextVar[list[Counts] | None]] = ContextVar("verl_mtp_acceptance_requests", default=None)


@contextmanager
def _collecting() -> Iterator[list[Counts]]:
    """The counts of all requests that are made inside."""
    requests: list[Counts] = []
    token = _REQUESTS.set(requests)
    try:
        yield requests
    finally:
        _REQUESTS.reset(token)


async def one_request(original: Any, client: Any, *args: Any, **kwargs: Any) -> Any:
    """The client's ``generate``, which is one request to a server."""
    output = await original(client, *args, **kwargs)
    requests = _REQUESTS.get()
    counts = acceptance.of_fields(getattr(output, "extra_fields", None))
    if requests is not None and counts is not None:
        requests.append(counts)
    return output


async def resumed_request(original: Any, client: Any, *args: Any, **kwargs: Any) -> Any:
    """``FullyAsyncLLMServerClient.generate``, which goes on after every abort and keeps the counts of no request."""
    with _collecting() as requests:
        output = await original(client, *args, **kwargs)
    if requests:
        acceptance.write(output.extra_fields, sum(requests, acceptance.NOTHING))
    return output


async def turn(original: Any, loop: Any, agent_data: Any, *args: Any, **kwargs: Any) -> Any:
    """``ToolAgentLoop._handle_generating_state`` of verl 0.7.1, which keeps the counts of the first turn alone."""
    before = acceptance.of_fields(agent_data.extra_fields)
    with _collecting() as requests:
        state = await original(loop, agent_data, *args, **kwargs)
    if requests:
        acceptance.write(agent_data.extra_fields, sum(requests, before or acceptance.NOTHING))
    return state
