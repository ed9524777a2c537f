"""verl's vLLM server as released and patched. ``python -m ...worker VLLM FOLDER``: JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(VERL_MTP_PLUGIN="off", VERL_USE_EXTERNAL_PLUGINS="none", CUDA_VISIBLE_DEVICES="")

from verl_mtp_plugin import runtime
from verl_mtp_plugin.patching import PatchEngine
from verl_mtp_plugin.rollout.vllm.hooks import PATCHES
from verl_mtp_plugin.settings import Settings

from . import cases_feed, cases_orders, cases_wrong, server  # noqa: F401  (their cases are among CASES)
from .cases import CASES, outcome


async def run_all(servers: server.Servers) -> dict[str, Any]:
    return {name: await outcome(asyncio.wait_for, run(servers), 60) for name, run in CASES.items()}


async def main(vllm: str, folder: Path) -> dict[str, Any]:
    server.prepare(vllm)
    servers = server.Servers(folder)
    found: dict[str, Any] = {"bare": await run_all(servers)}
    engine = PatchEngine()
    engine.arm(PATCHES)
    found["decisions"] = {record.id: str(record.decision) for record in engine.records()}
    # Only the limit is set; patches are those above, and with the plugin off it would have no options.
    runtime._runtime.settings = Settings(sync_drain_timeout_s=0.5)
    found["patched"] = await run_all(servers)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], Path(sys.argv[2])))))
