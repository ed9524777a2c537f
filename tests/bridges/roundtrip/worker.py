"""One of two processes: takes checkpoints through a bridge and back, and writes down what came of each.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 PYTHONPATH=<layers> \\
        python -m tests.bridges.roundtrip.worker BRIDGE VERSION MEGATRON_CORE FOLDER CASE...

FOLDER gets ``outcomes.json`` from rank 0. Not sharded (``@1``), both hold the whole model, as data parallelism has it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from verl_mtp_plugin.patching.engine import PatchEngine
from verl_mtp_plugin.testing import cuda

from . import checkpoints, configs
from .bridges import bridge_for, through
from .cells import PROCESSES, Case, Stack
from .compare import compared
from .prepare import arm, prepare, use_layout


def main() -> None:
    bridge, version, megatron_core, folder, *texts = sys.argv[1:]
    stack = Stack(bridge, version, megatron_core)
    prepare(stack)
    engine = PatchEngine()
    found: dict[str, Any] = {}
    for case in map(Case.parse, texts):
        if "bare" not in case.options and not engine.records():
            arm(engine, stack)
        use_layout(case.tensor_parallel)
        found[str(case)] = outcome(stack, case, Path(folder) / f"rank{os.environ['RANK']}")
    if os.environ["RANK"] == "0":
        decisions = {record.id: str(record.decision) for record in engine.records()}
        (Path(folder) / "outcomes.json").write_text(json.dumps({"decisions": decisions, "cases": found}))
    torch.distributed.barrier()
    cuda.end_process()


def outcome(stack: Stack, case: Case, folder: Path) -> dict[str, Any]:
    """What came of one case, or the exception that ended it on every rank alike."""
    config = configs.config(case)
    wanted = checkpoints.tensors(config, copies="copies" in case.options)
    folder = checkpoints.write(folder / str(case).replace("@", "-"), config, wanted)
    found: dict[str, Any] = {"error": None}
    try:
        bridge = bridge_for(stack, case, folder)
        found["supported"] = bridge.supported()
        return found | compared(case, config, wanted, through(bridge, folder))
    except Exception as error:
        traceback.print_exc()
        return found | {"error": f"{type(error).__name__}: {str(error).strip()}"[:300]}
    finally:
        torch.set_default_dtype(torch.float32)  # mbridge leaves another one where reading DeepSeek's tensors fails


if __name__ == "__main__":
    assert int(os.environ["WORLD_SIZE"]) == PROCESSES
    main()
