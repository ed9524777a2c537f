"""One of two ranks: MTP weights that are missing must be missed by both, or one waits for the other. Prints JSON.

``RANK=... WORLD_SIZE=2 ... python -m tests.bridges.weights.ranks_worker FOLDER mbridge|megatron-bridge pp|tp|dp``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.stack.engine_worker import digest
from verl_mtp_plugin.testing import cuda

from . import common
from .common import attempt, build, is_head

LAYOUTS: dict[str, dict[str, int]] = {
    "pp": {"pipeline_model_parallel_size": 2},
    "tp": {"tensor_model_parallel_size": 2},
    "dp": {},
}
ONE = "model.mtp_layers.0.input_proj.weight"


def stages(folder: Path, full: Path, bridge: str) -> dict[str, Any]:
    """The head is on the last of two pipeline stages; the first has none."""
    from verl_mtp_plugin.bridges.weights import export

    options = LAYOUTS["pp"]
    found: dict[str, Any] = {"no_head": attempt(lambda: build(folder / "no_head", bridge, options=options))}
    with common.notices() as notices:
        anew = build(folder / "no_head", bridge, missing="random", saved=("model",), options=options)
    sent = anew.export()
    anew._engine.save_checkpoint(str(folder / "anew"), global_step=1)
    found |= {
        "notices": len(notices),
        "parameters": len(common.head_statistics(anew)),
        "sent": set(sent) == set(common.load(full)),
        "digest": digest(sent),
        "saved": common.same(common.load(folder / "anew"), sent),
    }
    own = anew._engine
    with common.unmapped(own.bridge, bridge, "eh_proj"):
        export._known.clear()
        found["plan"] = attempt(lambda: export.check_export(own.bridge, own.module))
    export._known.clear()
    with common.unsent(own.bridge, bridge, "eh_proj"):
        found["unsent"] = attempt(anew.export)
    plain = build(full, bridge, with_mtp=False, saved=("model",), options=options)
    common.use_dist_checkpoints(plain, use=True)
    plain._engine.save_checkpoint(str(folder / "plain"), global_step=1)
    common.use_dist_checkpoints(anew, use=True)
    found["resume"] = attempt(lambda: own.load_checkpoint(str(folder / "plain")))
    return found


def shards(folder: Path, full: Path, bridge: str) -> dict[str, Any]:
    """Both hold half of each tensor; the second looks into another copy of the checkpoint, which lacks one."""
    options = LAYOUTS["tp"]
    own_copy = folder / "one" if torch.distributed.get_rank() else full
    found: dict[str, Any] = {
        "error": attempt(lambda: build(own_copy, bridge, options=options)),
        "random": attempt(lambda: build(own_copy, bridge, missing="random", options=options)),
    }
    unreadable = folder / "unreadable" if torch.distributed.get_rank() else full
    found["unreadable"] = attempt(lambda: build(unreadable, bridge, options=options))
    anew = build(folder / "no_head", bridge, missing="random", options=options)
    sent, made = anew.export(), common.load(full)
    found["trunk"] = common.same(*({n: w for n, w in of.items() if not is_head(n)} for of in (sent, made)))
    found["deviation"] = float(sent[ONE].float().std())
    found["halves_differ"] = not torch.equal(*sent[ONE].chunk(2))
    found["digest"] = digest(sent)
    return found


def replicas(folder: Path, full: Path, bridge: str) -> dict[str, Any]:
    """Both start the same new head."""
    anew = build(folder / "no_head", bridge, missing="random", options=LAYOUTS["dp"])
    return {"digest": digest(anew.export())}


def main() -> None:
    folder, bridge, layout = Path(sys.argv[1]), *sys.argv[2:4]
    common.prepare(bridge)
    torch.cuda.device_count = lambda: 1  # verl seeds Megatron's generators, one for each rank, if there is a device
    common.register()
    full = folder / "full"
    if torch.distributed.get_rank() == 0:
        made = common.load(common.make(folder, bridge))
        common.copy(full, folder / "no_head", {name: w for name, w in made.items() if not is_head(name)})
        common.copy(full, folder / "one", {name: w for name, w in made.items() if name != ONE})
        (common.copy(full, folder / "unreadable", made, files=1) / "model.safetensors").write_bytes(b"not a header")
    torch.distributed.barrier()
    case = {"pp": stages, "tp": shards, "dp": replicas}[layout]
    print("=> " + json.dumps(case(folder, full, bridge)))
    cuda.end_process()


if __name__ == "__main__":
    main()
