"""Phases that both sessions play: memory, identity, throughput, many syncs."""

from __future__ import annotations

import time
from typing import Any, Final

from . import machine, outputs
from .cluster import Cluster
from .record import Phase

STEP_LIMIT_S: Final = 0.5  # a release, a resume
GROWTH_LIMIT_MIB: Final = 50.0
FREED_SHARE: Final = 0.98
ACCEPTED: Final = 1.5  # tokens per verify step
STEPS: Final = ("pause_s", "drain_s", "kv_release_s", "transfer_s", "kv_resume_s", "seconds")
_WARM: Final = 5  # syncs before growth counts


async def memory(cluster: Cluster, out: Phase) -> None:
    """Release and resume by themselves: what comes free, by the driver, against the size of the KV pools."""
    pool_mib = await cluster.pool_gib() * 1024
    prompts = cluster.prompts(8)
    before = await cluster.ask(prompts, 64)
    rounds = []
    for _ in range(5):
        await cluster.replica.abort_all_requests()
        used = cluster.gpu.settled()
        begin = time.monotonic()
        answer = await cluster.server.release_kv_cache.remote()
        released_s, least = time.monotonic() - begin, cluster.gpu.settled(0.1)
        begin = time.monotonic()
        await cluster.server.resume_kv_cache.remote()
        resumed_s = time.monotonic() - begin
        await cluster.replica.resume_generation()
        freed = (answer.get("freed_bytes") or 0) / machine.MIB
        rounds.append((used - least, freed, released_s, resumed_s, cluster.gpu.settled(0.1) - used))
    freed, said, released, resumed, back = map(list, zip(*rounds))
    pools_mib = pool_mib * cluster.model.pools
    out.note(
        engine=(await cluster.engine()).get("memory_usage"),
        kv_pool_mib=pool_mib,
        kv_pools_with_drafter_mib=pools_mib,
        used_mib=used,
        released_mib=least,
        freed_mib=outputs.summary(freed),
        freed_by_plugin_mib=outputs.summary(said),
        more_after_resume_mib=outputs.summary(back),
        release_s=outputs.summary(released),
        resume_s=outputs.summary(resumed),
    )
    for name, size in (("target", pool_mib), ("target_and_drafter", pools_mib)):
        share = min(freed) / size if size else 0.0
        out.check(f"freed_share_of_{name}", share >= FREED_SHARE, round(share, 4), f">= {FREED_SHARE}", gpu=True)
    share = min(said) / pools_mib if pools_mib else 0.0
    out.check("freed_share_by_plugin", share >= FREED_SHARE, round(share, 4), f">= {FREED_SHARE}")
    for name, seconds in (("release_s", released), ("resume_s", resumed)):
        out.check(name, max(seconds) < STEP_LIMIT_S, round(max(seconds), 4), f"< {STEP_LIMIT_S}")
    same = outputs.same(before, await cluster.ask(prompts, 64))
    out.check("identical", same == len(prompts), f"{same} of {len(prompts)}", "all")


async def noop(cluster: Cluster, out: Phase) -> None:
    """Greedy output before and after syncs of the weights that the server has, the first of them checked."""
    prompts = cluster.prompts(16)
    before = await cluster.ask(prompts, 128)
    again = await cluster.ask(prompts, 128)
    if cluster.session == "plugin" and not cluster.options.rehearse:
        await cluster.check_drafter(True)
    first = await cluster.sync()
    after_first = await cluster.ask(prompts, 128)
    if cluster.session == "plugin":
        compared = await cluster.compared()
        out.check("drafter_parameters_compared", compared > 0, compared, "> 0", gpu=True)
        await cluster.check_drafter(False)
    second = await cluster.sync()
    after_second = await cluster.ask(prompts, 128)
    out.note(
        repeatable=outputs.same(before, again),
        acceptance=outputs.acceptance(before),
        acceptance_after=outputs.acceptance(after_second),
        accept_length_by_sglang=(await cluster.engine()).get("avg_spec_accept_length"),
        syncs=[first, second],
        distinct=len(set(map(tuple, outputs.tokens(before)))),
    )
    for name, answers in (("identical", after_first), ("identical_after_second", after_second)):
        same = outputs.same(before, answers)
        out.check(name, same == len(prompts), f"{same} of {len(prompts)}", "all")
    lengths = {len(answer) for answers in (before, after_first, after_second) for answer in outputs.tokens(answers)}
    out.check("lengths", lengths == {128}, sorted(lengths), "[128]")
    _accepts(out, "tokens_per_step", before)
    _accepts(out, "tokens_per_step_after", after_second)


async def throughput(cluster: Cluster, out: Phase) -> None:
    """Tokens per second of 32 requests at a time."""
    prompts, tokens = cluster.prompts(32, seed=1), 256
    await cluster.ask(prompts, 32)
    rates = []
    for _ in range(3):
        begin = time.monotonic()
        answers = await cluster.ask(prompts, tokens)
        rates.append(len(prompts) * tokens / (time.monotonic() - begin))
    out.note(tokens_per_s=outputs.summary(rates), acceptance=outputs.acceptance(answers))


async def repeat(cluster: Cluster, out: Phase) -> None:
    """Syncs in a row, each with new weights, whose first token of every prompt is known; memory after each."""
    plugin = cluster.session == "plugin"
    number = cluster.options.syncs if plugin else max(_WARM + 1, cluster.options.syncs // 5)
    checked = number // 2 if plugin and not cluster.options.rehearse else 0
    prompts, probes = cluster.prompts(16), cluster.prompts(8, seed=2)
    before, print_before = await cluster.ask(prompts, 128), await cluster.fingerprint()
    first = [answer[0] for answer in outputs.tokens(await cluster.ask(probes, 16))]
    pid = await cluster.server.__ray_call__.remote(_pid)
    if checked:
        await cluster.check_drafter(True)
    syncs: list[dict[str, Any]] = []
    for roll in range(1, number + 1):
        if checked and roll == checked + 1:
            await cluster.check_drafter(False)
        outcome = await cluster.sync(roll)
        answers = await cluster.ask(probes, 16)
        outcome["new"] = [answer[0] for answer in outputs.tokens(answers)] == cluster.expected_first(first, roll)
        outcome |= {"used_mib": cluster.gpu.settled(0.06), **machine.resident(pid)}
        syncs.append(outcome)
    print_new = await cluster.fingerprint()
    _accepts(out, "tokens_per_step_new_weights", answers)
    await cluster.sync()
    after, print_after = await cluster.ask(prompts, 128), await cluster.fingerprint()
    same = outputs.same(before, after)
    used = [sync["used_mib"] for sync in syncs]
    growth = used[-1] - used[_WARM - 1]
    out.note(
        number=number,
        drafter_checked=checked,
        steps={name: outputs.summary([s[name] for s in syncs]) for name in STEPS if name in syncs[-1]},
        freed_gib=outputs.summary([sync.get("kv_freed_gib", 0.0) for sync in syncs]),
        used_mib=used,
        rss_mib={who: [round(sync[who]) for sync in syncs] for who in ("server", "children")},
    )
    if checked:
        for name, part in (("checked", syncs[:checked]), ("unchecked", syncs[checked:])):
            out.note(**{f"transfer_s_{name}": outputs.summary([sync["transfer_s"] for sync in part])})
    served = sum(sync["new"] for sync in syncs)
    out.check("new_weights_served", served == number, f"{served} of {number}", "all")
    out.check("growth_mib", growth < GROWTH_LIMIT_MIB, round(growth, 1), f"< {GROWTH_LIMIT_MIB:g} from sync {_WARM}")
    out.check("fingerprints", print_before == print_after != print_new, [print_before, print_new, print_after], "A B A")
    out.check("identical_with_first_weights", same == len(prompts), f"{same} of {len(prompts)}", "all")
    for name in ("kv_release_s", "kv_resume_s") if plugin else ():
        slowest = max(sync[name] for sync in syncs)
        out.check(name, slowest < STEP_LIMIT_S, round(slowest, 4), f"< {STEP_LIMIT_S}")


def _accepts(out: Phase, name: str, answers: Any) -> None:
    found = outputs.acceptance(answers).get("tokens_per_step", 0.0)
    out.check(name, found > ACCEPTED, round(found, 3), f"> {ACCEPTED}", gpu=True)


def _pid(server: Any) -> int:
    import os

    return os.getpid()
