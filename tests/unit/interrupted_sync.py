"""A process in the middle of a weight sync, for Ctrl-C: ``python -m tests.unit.interrupted_sync STEP CALLER``.

The servers are those of :mod:`.rollout_servers`; one of them never answers in STEP, or the transfer takes for ever. The
sync is called as verl's callers do: from blocking code, from a coroutine, or from blocking code under a running loop.
Prints "ready" in STEP, and what is left at the end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any

from verl_mtp_plugin.rollout.interrupt import Interrupt
from verl_mtp_plugin.rollout.manager import _ended
from verl_mtp_plugin.rollout.states import StateMirror
from verl_mtp_plugin.rollout.transfer import _in_thread
from verl_mtp_plugin.rollout.weight_sync import synchronize

from .rollout_servers import Cluster, Fault, Server, options

#: Seconds of a transfer that ends within an interrupt's grace, and of one that does not end.
SHORT_S, ENDLESS_S = 2.0, 1000.0


class Transfer:
    """Blocks in a thread, as verl's does in ``ray.get``."""

    repeatable = True

    def __init__(self, cluster: Cluster, seconds: float) -> None:
        self._cluster, self._seconds = cluster, seconds

    async def run(self) -> Any:
        def send() -> None:
            say_ready()
            time.sleep(self._seconds)
            for server in self._cluster.servers:
                server.weights = 1

        await _in_thread(send)

    async def finalize(self) -> bool:
        return True


class Told(Server):
    """Says when it is asked for what it never answers."""

    async def _call(self, name: str, effect: Any) -> None:
        if name in self.faults:
            threading.Timer(0.2, say_ready).start()
        await super()._call(name, effect)


def say_ready() -> None:
    print("ready", flush=True)


def blocking(sync: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(sync)


def awaited(sync: Coroutine[Any, Any, Any]) -> None:
    async def main() -> None:
        interrupt.begin()  # what verl's decorator calls in the coroutine that awaits
        await sync

    asyncio.run(main())


def under_a_loop(sync: Coroutine[Any, Any, Any]) -> None:
    """``auto_await`` in blocking code that a coroutine calls: a loop of its own in another thread."""

    async def main() -> None:
        interrupt.begin()
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
            pool.submit(asyncio.run, sync).result()

    asyncio.run(main())


CALLERS = {"blocking": blocking, "awaited": awaited, "under_a_loop": under_a_loop}
interrupt = Interrupt()


def main(step: str, caller: str) -> None:
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    cluster, mirror = Cluster(2), StateMirror()
    cluster.servers[1].__class__ = Told
    if not step.startswith("transfer"):
        cluster.servers[1].faults[step] = [Fault.SILENT]
    transfer = Transfer(cluster, {"transfer": ENDLESS_S, "transfer that ends": SHORT_S}.get(step, 0.0))
    if caller == "blocking":
        interrupt.begin()
    sync = synchronize(cluster.servers, transfer, options(), mirror, interrupt)
    try:
        CALLERS[caller](_ended(sync, interrupt))
    finally:
        left = [(s.paused, s.kv_mapped, s.weights, str(mirror.state(s))) for s in cluster.servers]
        print("left", left, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
