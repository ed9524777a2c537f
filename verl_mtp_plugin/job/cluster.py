"""Whether all processes of one torch.distributed job run the same versions and patches.

The processes write to the key-value store that every torch.distributed job has. No collective is used: a node on
which the plugin is missing would never join it, and the job would hang instead of being told.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections import Counter
from typing import Any, Final

from ..errors import UnevenClusterError
from ..patching.report import PatchReport

logger = logging.getLogger("verl_mtp_plugin")

PREFIX: Final = "verl_mtp_plugin/"
TIMEOUT_S: Final = 60.0

_compared = False


def compare_processes(report: PatchReport, *, strict: bool, timeout_s: float = TIMEOUT_S) -> None:
    """Compare this process's digest with all others', once per process.

    The process that arrives first reads what the others write and names those that differ, or have not written within
    ``timeout_s`` seconds, in one warning; in strict mode it shares its verdict and every process raises.

    Raises:
        UnevenClusterError: strict mode, and the processes differ.
    """
    global _compared
    import torch.distributed as dist

    if _compared or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    _compared = True
    message = compare_through(
        _default_store(dist), dist.get_rank(), dist.get_world_size(), report, strict=strict, timeout_s=timeout_s
    )
    if message and strict:
        raise UnevenClusterError(
            found=message,
            expected="the same versions and patches in all processes",
            advice="Install the same packages on every node, or use mode auto to go on with a warning.",
        )
    if message:
        logger.warning("verl-mtp-plugin: the processes of this job differ: %s", message)


def _default_store(dist: Any) -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return dist.PrefixStore(PREFIX, _get_default_store())


def compare_through(
    store: Any, rank: int, world_size: int, report: PatchReport, *, strict: bool, timeout_s: float
) -> str:
    """Write this rank's state, and return what differs ("" when nothing does, or another rank reports it).

    Args:
        store: a torch.distributed store, shared by all ranks.
    """
    store.set(f"state/{rank}", json.dumps(_state(report)))
    if store.add("first", 1) == 1:
        message = _differences(store, world_size, timeout_s)
        store.set("verdict", message or "even")
        return message
    if not strict:
        return ""
    # The first process answers after at most timeout_s; twice that means that it has died.
    if not _wait_for(store, "verdict", 2 * timeout_s):
        return "the process that compares the others did not answer"
    verdict: str = store.get("verdict").decode()
    return "" if verdict == "even" else verdict


def _state(report: PatchReport) -> dict[str, Any]:
    versions = {name: version for name, version in report.versions.items() if version}
    return {"node": platform.node(), "digest": report.digest(), "versions": {**versions, "plugin": report.version}}


def _wait_for(store: Any, key: str, timeout_s: float) -> bool:
    """Poll: a blocking wait would hold the store's lock against the training's own use of it."""
    deadline = time.monotonic() + timeout_s
    while not store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _differences(store: Any, world_size: int, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    states: dict[int, dict[str, Any]] = {}
    missing: list[int] = []
    for rank in range(world_size):
        if _wait_for(store, f"state/{rank}", max(0.0, deadline - time.monotonic())):
            states[rank] = json.loads(store.get(f"state/{rank}"))
        else:
            missing.append(rank)
    parts = []
    common = Counter(state["digest"] for state in states.values()).most_common(1)[0][0]
    usual = next(state for state in states.values() if state["digest"] == common)
    for rank, state in states.items():
        if state["digest"] != common:
            parts.append(f"rank {rank} on {state['node']} has {_changes(state, usual)}")
    if missing:
        ranks = ", ".join(map(str, missing))
        parts.append(f"rank(s) {ranks} did not answer within {timeout_s:g} s: the plugin may be missing there")
    return "; ".join(parts)


def _changes(state: dict[str, Any], usual: dict[str, Any]) -> str:
    names = sorted(set(state["versions"]) | set(usual["versions"]))
    changed = [
        f"{name} {state['versions'].get(name, 'missing')} (others {usual['versions'].get(name, 'missing')})"
        for name in names
        if state["versions"].get(name) != usual["versions"].get(name)
    ]
    return ", ".join(changed) or f"other patch decisions (digest {state['digest']}, others {usual['digest']})"
