"""One server start and the phases on it, in a process of its own. Started by :mod:`.__main__`."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from . import options as choices
from .record import Phase, Record

#: Seconds that a phase may take; a hung one must not cost those after it.
LIMIT_S: Final = {"repeat": 200.0, "start": 330.0}
OTHERS_S: Final = 75.0
Play = Callable[[Any, Phase], Awaitable[None]]
_PACKAGES: Final = ("verl", "sglang", "torch", "ray", "flashinfer-python", "torch_memory_saver", "verl-mtp-plugin")


def _plays() -> dict[str, Play]:
    from . import failures, in_flight, phases

    return {
        "memory": phases.memory,
        "noop": phases.noop,
        "throughput_before": phases.throughput,
        "repeat": phases.repeat,
        "throughput_after": phases.throughput,
        "out_of_memory": failures.out_of_memory,
        "transfer_fails": failures.transfer_fails,
        "abort": in_flight.abort,
        "retract": in_flight.retract,
        "retract_logprobs": in_flight.retract_logprobs,
        "retract_burst": in_flight.retract_burst,
        choices.KEPT_CACHE: in_flight.kept_cache,
    }


async def run(options: argparse.Namespace) -> bool:
    """Play all phases; whether everything held."""
    record = Record(options.output, options.progress, options.session)
    record.facts = _facts()
    if options.rehearse:
        from . import rehearsal

        rehearsal.prepare()
    from .cluster import Cluster

    cluster = Cluster(options, options.session)
    record.facts |= {"gpu": cluster.gpu.name, "utilization": cluster.utilization, "bucket_mib": options.bucket_mib}
    record.facts |= {"attention": options.attention, "model": vars_of(cluster.model)}
    await play(record, "start", _start, cluster)
    start = record.phases["start"]
    if start.error or not start.checks["plugin_in_server"]["ok"]:
        return False
    for name in (name for name in choices.phases(options, options.session) if name not in _skipped(options)):
        fine = await play(record, name, _plays()[name], cluster)
        if not fine and record.phases[name].error and not await _mended(cluster):
            record.say("the server is gone or stays paused: nothing more is played")
            break
    return record.ok and set(record.phases) >= set(choices.phases(options, options.session)) - _skipped(options)


def _skipped(options: argparse.Namespace) -> set[str]:
    """The stand-in's tokens have no log-probs."""
    return {"retract_logprobs"} if options.rehearse else set()


async def play(record: Record, name: str, call: Play, cluster: Any) -> bool:
    """One phase, whatever becomes of it; whether it held."""
    record.say(f"{name} ...")
    phase, begin = Phase(cluster.options.rehearse), time.monotonic()
    try:
        await asyncio.wait_for(call(cluster, phase), LIMIT_S.get(name, OTHERS_S))
    except asyncio.TimeoutError:
        phase.error = f"not done within {LIMIT_S.get(name, OTHERS_S):g} s"
    except Exception as error:
        traceback.print_exc()
        phase.error = f"{type(error).__name__}: {str(error)[-1500:]}"
    phase.seconds = time.monotonic() - begin
    record.done(name, phase)
    return phase.ok


async def _start(cluster: Any, out: Phase) -> None:
    """Server, workers, trainer; and that the plugin is where it should be, or nowhere."""
    before = cluster.gpu.used()
    await cluster.start()
    out.note(used_before_mib=before, used_mib=cluster.gpu.settled())
    for where, actor in (("server", cluster.server), ("worker", cluster.worker)):
        found = await actor.__ray_call__.remote(_patches)
        out.note(**{where: found})
        wanted = cluster.session == "plugin"
        out.check(f"plugin_in_{where}", found["active"] is wanted, found["active"], str(wanted))
        out.check(f"patches_in_{where}", not found["broken"], found["broken"], "none broken")
    answers = await cluster.ask(cluster.prompts(4), 32)  # warm
    out.check("serves", all(len(answer.token_ids) == 32 for answer in answers), len(answers), "4 answers")
    out.note(engine=await _engine_facts(cluster))


async def _engine_facts(cluster: Any) -> dict[str, Any]:
    names = ["mem_fraction_static", "attention_backend", "sampling_backend", "speculative_algorithm"]
    names += ["speculative_num_steps", "speculative_num_draft_tokens", "max_running_requests", "memory_usage"]
    names += ["disable_overlap_schedule", "page_size", "cuda_graph_max_bs", "chunked_prefill_size"]
    found = await cluster.engine()
    return {name: found.get(name) for name in names}


def _patches(actor: Any) -> dict[str, Any]:
    import sys

    runtime = sys.modules.get("verl_mtp_plugin.runtime")
    if runtime is None:
        return {"active": False, "applied": 0, "broken": []}
    report = runtime.report()
    decisions = {record.id: str(record.decision) for record in report.patches}
    ours = {name: decision for name, decision in decisions.items() if name.startswith("rollout.")}
    return {
        "active": report.active,
        "mode": report.mode,
        "applied": sum(decision == "applied" for decision in ours.values()),
        "broken": [f"{name} {decision}" for name, decision in ours.items() if decision in ("failed", "unsupported")],
    }


async def _mended(cluster: Any) -> bool:
    """After a phase that broke off: everything as at the start, if the server still lives."""
    from verl_mtp_plugin.testing import faults

    faults.clear_faults()
    try:
        cluster.retract(False) if cluster.session == "plugin" else await asyncio.wait_for(cluster.free_cache(True), 10)
        await asyncio.wait_for(cluster.rescue(), 20)
        cluster.adopt()
        await asyncio.wait_for(cluster.sync(), 30)
        return bool(await cluster.served(10.0))
    except Exception:
        traceback.print_exc()
        return False


def vars_of(model: Any) -> dict[str, Any]:
    return {
        "name": model.folder.name,
        "layers": model.layers,
        "drafters": model.drafters,
        "vocabulary": model.vocabulary,
        "weights_gib": round(model.weights_gib, 3),
    }


def _facts() -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {"python": platform.python_version(), "versions": versions}


def main() -> None:
    options = choices.parse()
    options.output = Path(options.output)
    fine = asyncio.run(_run_and_stop(options))
    os._exit(0 if fine else 1)  # threads of a hung sync would keep the process


async def _run_and_stop(options: argparse.Namespace) -> bool:
    try:
        return await run(options)
    except Exception:
        traceback.print_exc()
        return False
    finally:
        import ray

        ray.shutdown()


if __name__ == "__main__":
    main()
