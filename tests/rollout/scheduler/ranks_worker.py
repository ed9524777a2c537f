"""Two tensor-parallel ranks, each with half a parameter, gather what they hold. Prints JSON of both ranks' answers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace


def rank_main(rank: int, folder: str) -> None:
    import torch

    from verl_mtp_plugin.rollout.sglang import parameters

    from .models import Model

    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    draft, target = Model(own=(2,), shared=(3,)), Model(shared=(3,))
    draft.shared = target.shared
    draft.own.data += rank + 1
    worker = SimpleNamespace(model_runner=SimpleNamespace(model=target))
    scheduler = SimpleNamespace(tp_worker=worker, tp_cpu_group=torch.distributed.group.WORLD)
    answer = parameters.of_all_ranks(scheduler, [SimpleNamespace(model=draft)], with_digests=True)
    Path(folder, str(rank)).write_text(json.dumps(answer))


def main() -> None:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # Forked: an interpreter that ends while gloo's threads run may abort.
        torch.multiprocessing.start_processes(rank_main, args=(folder,), nprocs=2, start_method="fork")
        print("=> " + json.dumps([json.loads(Path(folder, str(rank)).read_text()) for rank in range(2)]))


if __name__ == "__main__":
    main()
