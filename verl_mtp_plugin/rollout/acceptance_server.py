"""Acceptance in the process of an SGLang server: from what SGLang reports to where verl looks for it.

verl's ``generate`` runs SGLang's ``generate_request`` in its own task, so a context variable tells the latter that it
works for the former, and takes the counts back. SGLang's HTTP routes are left as they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from . import acceptance
from .acceptance import Counts


@dataclass
class _Call:
    """One ``generate`` of a server that drafts."""

    drafts_per_step: int
    reached_engine: bool = False  # not so in a prefill server that hands the request to a decode server
    counts: Counts | None = None


_CALL: Final[ContextVar[_Call | None]] = ContextVar("verl_mtp_acceptance_call", default=None)


async def generate(original: Any, server: Any, *args: Any, **kwargs: Any) -> Any:
    """``SGLangHttpServer.generate``, whose TokenOutput then has the counts in ``extra_fields``.

    Without speculative decoding nothing is added.
    """
    if not acceptance.asks_for_mtp(server.config):
        return await original(server, *args, **kwargs)
    # SGLang counts the token that the target adds to the drafts among the "draft tokens" of its settings.
    call = _Call(drafts_per_step=(getattr(server.config.mtp, "speculative_num_draft_tokens", None) or 1) - 1)
    token = _CALL.set(call)
    try:
        output = await original(server, *args, **kwargs)
    finally:
        _CALL.reset(token)
    if call.reached_engine:
        acceptance.write(output.extra_fields, call.counts)
    return output


async def generate_request(original: Any, manager: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
    """``TokenizerManager.generate_request``, with the names that verl reads in ``meta_info``."""
    call = _CALL.get()
    # Closed together with this one: it holds SGLang's lock on weight updates until then.
    async with aclosing(original(manager, *args, **kwargs)) as outputs:
        async for output in outputs:
            if call is not None and isinstance(output, dict):
                _note(call, output.setdefault("meta_info", {}))
            yield output


def _note(call: _Call, meta_info: dict[str, Any]) -> None:
    call.reached_engine = True
    call.counts = acceptance.of_meta_info(meta_info, call.drafts_per_step)
    meta_info.update((call.counts or acceptance.NOTHING).under(acceptance.VERL_READS))
