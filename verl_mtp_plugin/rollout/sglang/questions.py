"""What the plugin asks in SGLang's scheduler processes, and how the answer comes back.

A question travels as the ``action`` of SGLang's own ``/weights_checker``, which every release from 0.5.6 on passes to
all ranks of the scheduler as it is; the answer is JSON in its message. A scheduler without the plugin answers with
HTTP status 400, since it knows no such action.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from . import parameters, routes

logger = logging.getLogger(__name__)

ENDPOINT: Final = "weights_checker"
_PREFIX: Final = "verl_mtp."
#: Who drafts, whether weights reach it, and its parameters on each rank, without looking at their values.
DESCRIBE: Final = f"{_PREFIX}describe"
#: The same parameters with a digest of what they hold.
DIGEST: Final = f"{_PREFIX}digest"


class NoAnswerError(RuntimeError):
    """The scheduler does not know the question, or could not answer it."""


# -- in the worker process that sends the weights ------------------------------------------------------------------


async def ask(engine: Any, question: str) -> list[dict[str, Any]]:
    """The answers of an engine's schedulers, one for each data-parallel rank.

    Args:
        engine: verl's ``AsyncHttpServerAdapter``.

    Raises:
        NoAnswerError: the scheduler has no plugin, or failed to answer.
    """
    try:
        body = await engine._make_async_request(ENDPOINT, {"action": question})
    except Exception as error:  # aiohttp's; verl does not say more of an HTTP error than its status
        if getattr(error, "status", None) != 400:
            raise
        raise NoAnswerError("SGLang's scheduler does not know the question: the plugin is not active there") from error
    answers = _answers(str(body.get("message", "")))
    for answer in answers:
        if "error" in answer:
            raise NoAnswerError(answer["error"])
    return answers


def _answers(text: str) -> list[dict[str, Any]]:
    """SGLang joins the messages of several schedulers with `` | ``."""
    decoder, found, start = json.JSONDecoder(), [], text.find("{")
    while start >= 0:
        try:
            answer, end = decoder.raw_decode(text, start)
        except ValueError as error:
            raise NoAnswerError(f"not an answer: {text[start : start + 80]!r}") from error
        found.append(answer)
        start = text.find("{", end)
    return found


# -- in the scheduler process ----------------------------------------------------------------------------------------


def check_weights(original: Callable[[Any, Any], Any], self: Any, recv_req: Any) -> Any:
    """SGLang's handler of ``/weights_checker``, which answers our questions too."""
    answer = _HANDLERS.get(recv_req.action)
    if answer is None:
        return original(self, recv_req)
    try:
        content = answer(self)
    except Exception as error:  # an exception here would end the scheduler
        logger.exception("verl-mtp-plugin: %s failed", recv_req.action)
        content = {"error": f"{type(error).__name__}: {error}"}
    from sglang.srt.managers.io_struct import CheckWeightsReqOutput

    return CheckWeightsReqOutput(success=True, message=json.dumps(content))


def _describe(scheduler: Any) -> dict[str, Any]:
    worker = scheduler.draft_worker
    if worker is None:
        return {"worker": None}
    route = routes.route_of(type(worker))
    runners = routes.draft_runners(worker)
    mended = routes.mends(route)
    return {
        "worker": type(worker).__name__,
        "target": route.target or mended,
        "draft": route.draft or mended or not runners,
        "how": route.how,
        "mended": mended,
        "ranks": parameters.of_all_ranks(scheduler, runners, with_digests=False),
    }


def _digest(scheduler: Any) -> dict[str, Any]:
    runners = routes.draft_runners(scheduler.draft_worker)
    return {"ranks": parameters.of_all_ranks(scheduler, runners, with_digests=True)}


_HANDLERS: Final[Mapping[str, Callable[[Any], dict[str, Any]]]] = MappingProxyType(
    {DESCRIBE: _describe, DIGEST: _digest}
)
