"""Phases with requests in flight when a sync begins: aborted, or retracted and continued."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from . import outputs
from .cluster import Cluster, Prompts
from .record import Phase

REQUESTS: Final = 12
#: Seconds that a request shall last undisturbed, so that three syncs fall into it.
_LASTS_S: Final = 3.0
_MOST_TOKENS: Final = 6000
_BETWEEN_S: Final = 0.4
#: Syncs with the cache kept: the race between an abort and the step in flight is not lost each time.
KEPT_SYNCS: Final = 10


async def _length(cluster: Cluster, prompts: Prompts) -> int:
    """Tokens that take about :data:`_LASTS_S` seconds."""
    await cluster.ask(prompts, 64)
    begin = time.monotonic()
    await cluster.ask(prompts, 256)
    rate = 256 / (time.monotonic() - begin)
    return max(512, min(_MOST_TOKENS, int(rate * _LASTS_S)))


async def abort(cluster: Cluster, out: Phase) -> None:
    """The default: requests end, and all of them are counted."""
    prompts = cluster.prompts(REQUESTS, seed=4)
    tokens = await _length(cluster, prompts)
    whole = await cluster.ask(prompts, tokens)
    running = [asyncio.ensure_future(_wait(cluster.begin(prompt, tokens))) for prompt in prompts]
    await asyncio.sleep(0.5)
    sync = await cluster.sync()
    ended = await asyncio.wait_for(asyncio.gather(*running), 30)
    lengths = [len(answer) for answer in outputs.tokens(ended)]
    beginnings = sum(a == b[: len(a)] for a, b in zip(outputs.tokens(ended), outputs.tokens(whole)))
    out.note(tokens=tokens, sync=sync, generated=lengths, reasons=sorted({str(answer.stop_reason) for answer in ended}))
    aborted = sync.get("aborted_requests")
    out.check("aborted", aborted == REQUESTS, aborted, str(REQUESTS))
    out.check("ended_early", max(lengths) < tokens, max(lengths), f"< {tokens}")
    out.check("beginnings_identical", beginnings == REQUESTS, f"{beginnings} of {REQUESTS}", "all")
    again = outputs.same(whole, await cluster.ask(prompts, tokens))
    out.check("identical_afterwards", again == REQUESTS, f"{again} of {REQUESTS}", "all")


async def kept_cache(cluster: Cluster, out: Phase) -> None:
    """``free_cache_engine=False``, requests in flight: a step that is still running when weights come ends SGLang."""
    prompts = cluster.prompts(REQUESTS, seed=8)
    tokens = await _length(cluster, prompts)
    whole = await cluster.ask(prompts, tokens)
    await cluster.free_cache(False)
    syncs = []
    try:
        for _ in range(KEPT_SYNCS):
            running = [asyncio.ensure_future(_wait(cluster.begin(prompt, tokens))) for prompt in prompts]
            await asyncio.sleep(_BETWEEN_S)
            syncs.append(await cluster.sync())
            ended = await asyncio.wait_for(asyncio.gather(*running), 30)
    finally:
        out.note(tokens=tokens, syncs=syncs)
        await cluster.free_cache(True)
    out.check("syncs", len(syncs) == KEPT_SYNCS, len(syncs), str(KEPT_SYNCS))
    lengths = [len(answer) for answer in outputs.tokens(ended)]
    out.check("requests_were_in_flight", max(lengths) < tokens, max(lengths), f"< {tokens}")
    again = outputs.same(whole, await cluster.ask(prompts, tokens))
    out.check("identical_afterwards", again == REQUESTS, f"{again} of {REQUESTS}", "all")


async def retract(cluster: Cluster, out: Phase) -> None:
    """Requests go on through three syncs of the same weights; nothing is lost, nothing generated twice."""
    await _retract(cluster, out, {})


async def retract_logprobs(cluster: Cluster, out: Phase) -> None:
    """The same with log-probs, as verl asks for them in training."""
    await _retract(cluster, out, {"logprobs": True})


async def _retract(cluster: Cluster, out: Phase, sampling: dict[str, Any]) -> None:
    prompts = cluster.prompts(REQUESTS, seed=5)
    tokens = await _length(cluster, prompts)
    undisturbed = [await cluster.ask(prompts, tokens, **sampling) for _ in range(2)]
    cluster.retract(True)
    try:
        begin = time.monotonic()
        running = [asyncio.ensure_future(_wait(cluster.begin(prompt, tokens, **sampling))) for prompt in prompts]
        syncs = []
        for _ in range(3):
            await asyncio.sleep(_BETWEEN_S)
            before = (await cluster.status())["in_flight"]
            sync = await cluster.sync()
            syncs.append({**sync, "in_flight": [before, (await cluster.status())["in_flight"]]})
        answers = await asyncio.wait_for(asyncio.gather(*running), 60)
        seconds = time.monotonic() - begin
    finally:
        cluster.retract(False)
    _compare(out, undisturbed[0], answers, syncs, tokens)
    repeatable = outputs.same(*undisturbed)
    out.note(tokens=tokens, syncs=syncs, seconds_in_all=seconds, undisturbed_identical=repeatable)
    inside = [count for sync in syncs for count in sync["in_flight"]]
    out.check("in_flight_at_each_sync", min(inside) == REQUESTS, inside, f"{REQUESTS} each")
    if sampling:
        half = len(prompts[0]) // 2  # of a model that looks at its context: how much another one changes
        others = [new[:half] + old[half:] for new, old in zip(cluster.prompts(REQUESTS, seed=7), prompts)]
        out.note(
            logprob_distance_other_context=outputs.logprob_distance(
                undisturbed[0], await cluster.ask(others, tokens, **sampling)
            ),
            identical_in_other_context=outputs.same(undisturbed[0], await cluster.ask(others, tokens)),
            logprob_distance=outputs.logprob_distance(undisturbed[0], answers),
            logprob_distance_undisturbed=outputs.logprob_distance(*undisturbed),
        )
        complete = all(len(answer.log_probs or ()) == tokens for answer in answers)
        out.check("logprobs_complete", complete, complete, "one for each token")


async def retract_burst(cluster: Cluster, out: Phase) -> None:
    """More requests than run at a time, and syncs one after the other, in the middle of a prefill too."""
    prompts, tokens = cluster.prompts(96, length=500, seed=6), 384
    undisturbed = await cluster.ask(prompts, tokens)
    cluster.retract(True)
    try:
        running = [asyncio.ensure_future(_wait(cluster.begin(prompt, tokens))) for prompt in prompts]
        await asyncio.sleep(0.1)
        syncs = [await cluster.sync() for _ in range(4)]
        done, _ = await asyncio.wait(running, timeout=40)
    finally:
        cluster.retract(False)
    out.note(syncs=syncs, requests=len(prompts), tokens=tokens)
    out.check("all_answered", len(done) == len(prompts), f"{len(done)} of {len(prompts)}", "all")
    if len(done) == len(prompts):
        _compare(out, undisturbed, [task.result() for task in running], syncs, tokens)


def _compare(out: Phase, undisturbed: list[Any], answers: list[Any], syncs: list[dict[str, Any]], tokens: int) -> None:
    same, number = outputs.same(undisturbed, answers), len(answers)
    lengths = sorted({len(answer) for answer in outputs.tokens(answers)})
    aborted = sum(sync.get("aborted_requests", 0) for sync in syncs)
    reasons = sorted({str(answer.stop_reason) for answer in answers})
    out.note(reasons=reasons, acceptance=outputs.acceptance(answers))
    out.check("aborted", aborted == 0 and reasons == ["length"], [aborted, *reasons], "0, length")
    out.check("tokens_generated", lengths == [tokens], lengths, f"[{tokens}]")
    out.check("identical", same == number, f"{same} of {number}", "all")


async def _wait(reference: Any) -> Any:
    return await reference
