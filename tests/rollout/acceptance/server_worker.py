"""What verl's SGLang server says of drafts, as released and patched. ``python -m ...server_worker FOLDER``: JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(VERL_MTP_PLUGIN="off", VERL_USE_EXTERNAL_PLUGINS="none", CUDA_VISIBLE_DEVICES="")

from verl_mtp_plugin.patching import PatchEngine
from verl_mtp_plugin.rollout.acceptance_hooks import SERVER
from verl_mtp_plugin.rollout.sglang import verl_compat
from verl_mtp_plugin.testing import sglang_engine, toy_model

from . import server
from .scenario import LONG, SHORT


async def main(folder: Path) -> dict[str, Any]:
    PatchEngine().arm(verl_compat.PATCHES)  # without which verl's server does not start on SGLang >= 0.5.20
    model = toy_model.make(folder, max_position_embeddings=512)
    drafting = await server.launch(model, mtp=True)
    scheduler = sglang_engine.schedulers[-1]
    server.script_counts()
    found: dict[str, Any] = {"bare": await server.step(drafting, scheduler, "bare")}
    found["meta_info"] = await server.meta_info(drafting, LONG.name, "bare")
    engine = PatchEngine()
    engine.arm([SERVER])
    found["decisions"] = {record.id: str(record.decision) for record in engine.records()}
    found["patched"] = await server.step(drafting, scheduler, "patched")
    found["meta_info_patched"] = await server.meta_info(drafting, LONG.name, "patched")
    found["concurrent"] = await asyncio.gather(
        *(
            server.ask(drafting.generate([3], {"max_new_tokens": 8}, f"{request.name}.{i}"))
            for i in range(4)
            for request in (LONG, SHORT)
        )
    )
    plain = await server.launch(model, mtp=False)  # last: later releases of SGLang keep one config per process
    found["plain"] = await server.ask(plain.generate([3], {"max_new_tokens": 8}, f"{LONG.name}.plain"))
    return found


if __name__ == "__main__":
    server.prepare()
    result = asyncio.run(main(Path(sys.argv[1])))
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # SGLang's threads and the stand-in's would wait for ever
