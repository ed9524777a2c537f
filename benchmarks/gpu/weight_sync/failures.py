"""Phases in which a sync fails: no room for the transfer, a transfer that breaks (K1)."""

from __future__ import annotations

from typing import Final

from verl_mtp_plugin.testing import faults
from verl_mtp_plugin.testing.faults import Fault

from . import outputs
from .cluster import Cluster
from .record import Phase

HANG_S: Final = 5.0


async def out_of_memory(cluster: Cluster, out: Phase) -> None:
    """A transfer whose buffers do not fit beside the KV pools: with the pools kept (verl alone), and released."""
    buffers = 2 * cluster.options.bucket_mib
    used = cluster.gpu.settled()
    free = cluster.gpu.total() - used
    out.note(utilization=cluster.utilization, free_mib=free, buffers_mib=buffers, total_mib=cluster.gpu.total())
    out.check("no_room", free < buffers, f"{free:.0f} MiB free", f"< {buffers} MiB of buffers", gpu=True)
    if cluster.session == "released":
        await _kept(cluster, out)
    prompts = cluster.prompts(8, seed=3)
    before = await cluster.ask(prompts, 64)
    sync = await cluster.sync()
    out.note(released=sync)
    same = outputs.same(before, await cluster.ask(prompts, 64))
    out.check("passes_with_pools_released", same == len(prompts), f"{same} of {len(prompts)} identical", "all")


async def _kept(cluster: Cluster, out: Phase) -> None:
    await cluster.free_cache(False)
    error = await cluster.fails()
    served = await cluster.served(HANG_S)
    await cluster.rescue()
    await cluster.free_cache(True)
    out.note(kept_error=error[-600:])
    out.check("fails_with_pools_kept", "out of memory" in error.lower(), _last(error), "out of memory", gpu=True)
    out.note(served_after_failure=served)
    recovered = await cluster.served(30.0)
    out.check("serves_after_rescue_by_hand", recovered, recovered, "True")


async def transfer_fails(cluster: Cluster, out: Phase) -> None:
    """K1: the receiver raises at the last tensor. verl alone leaves its server paused; the plugin tries again."""
    probes = cluster.prompts(8, seed=2)
    await cluster.sync()
    first = [answer[0] for answer in outputs.tokens(await cluster.ask(probes, 16))]
    if cluster.session == "released":
        faults.set_fault("receive", Fault.FAIL, 1)
        error = await cluster.fails(7)
        served = await cluster.served(HANG_S)
        out.note(error=error[-600:], served_within_s=HANG_S)
        out.check("raises", "asked to fail at receive" in error, _last(error), "the transfer's error")
        out.check("hangs_without_plugin", not served, f"served: {served}", "no answer")
        faults.clear_faults()
        await cluster.rescue()
        await cluster.sync()
        recovered = await cluster.served(30.0)
        out.check("serves_after_rescue_by_hand", recovered, recovered, "True")
        return
    for roll, step in ((7, "receive"), (9, "prepare")):
        faults.set_fault(step, Fault.FAIL, 1)
        sync = await cluster.sync(roll)
        faults.clear_faults()
        found = [answer[0] for answer in outputs.tokens(await cluster.ask(probes, 16))]
        out.note(**{step: sync})
        out.check(f"{step}_retries", sync["retries"] == 1, sync["retries"], "1")
        right = found == cluster.expected_first(first, roll)
        out.check(f"{step}_new_weights_served", right, right, "True")
    await cluster.sync()


def _last(error: str) -> str:
    return error.splitlines()[-1] if error else "no error"
