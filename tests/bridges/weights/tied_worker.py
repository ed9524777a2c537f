"""One of two pipeline stages of a model with MTP: the embedding, which both stages hold. Prints JSON.

``RANK=... WORLD_SIZE=2 ... python -m tests.bridges.weights.tied_worker FOLDER mbridge|megatron-bridge tied|untied``;
megatron-core 0.15 has no MTP with packed sequences, so sequences are padded there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.stack.engine_worker import digest, number
from verl_mtp_plugin.testing import cuda

from . import common
from .common import attempt, build

# isort: split
import model
from data import Problems

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PROBLEMS = Problems(seed=1)
BATCHES = [PROBLEMS.take(8) for _ in range(3)]
#: Two steps on these give torch's Adam, which stands in for TransformerEngine's, a state to load over.
OTHERS = [PROBLEMS.take(8) for _ in range(2)]
OPTIONS = {"pipeline_model_parallel_size": 2}


def start(full: Path, bridge: str) -> Any:
    import megatron.core

    return build(full, bridge, options=OPTIONS, remove_padding=not megatron.core.__version__.startswith("0.15"))


def stream(own: Any) -> list[tuple[str, str]]:
    """Every name as it comes, with the digest of its tensor."""
    return [(name, bits(tensor)) for name, tensor in own.get_per_tensor_param()[0]]


def bits(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def train(trained: Any, batches: list[Any]) -> list[dict[str, float]]:
    """One optimizer step for each; what verl reports of them on the last stage."""
    from verl.workers.utils.losses import sft_loss

    found = []
    for problems in batches:
        with trained._engine.train_mode():
            output = trained._engine.train_batch(trained.batch(problems), loss_function=partial(sft_loss, config=None))
            trained._engine.lr_scheduler_step()
        found.append({name: number(value) for name, value in (output.get("metrics") or {}).items()})
    return found


def held(own: Any) -> dict[str, str]:
    """This stage's parameters beside its layers, by Megatron's name."""
    named = (item for chunk in own.module for item in chunk.named_parameters())
    return {name.replace("module.", ""): bits(p) for name, p in named if ".layers." not in name}


def resumed(full: Path, bridge: str, checkpoint: Path, *, dist: bool) -> dict[str, Any]:
    """Another engine with the checkpoint loaded, and the third step taken from there."""
    trained = start(full, bridge)
    train(trained, OTHERS)
    common.use_dist_checkpoints(trained, use=dist)
    trained._engine.load_checkpoint(str(checkpoint))
    common.separate_steps(trained)
    loaded = digest(trained.export())
    return {"loaded": loaded, "metrics": train(trained, BATCHES[2:]), "after": digest(trained.export())}


def run(folder: Path, full: Path, bridge: str) -> dict[str, Any]:
    trained = start(full, bridge)
    own = trained._engine
    found: dict[str, Any] = {"start": dict(stream(own))[EMBEDDING]}
    train(trained, BATCHES[:2])
    found |= {"stream": stream(own), "held": held(own), "log_probs_with": head_in_use(own)}
    exported = trained.export()
    own.save_checkpoint(str(folder / "hf"), global_step=2)
    common.use_dist_checkpoints(trained, use=True)
    own.save_checkpoint(str(folder / "dist"), global_step=2)
    found["folder"] = common.same(common.load(folder / "hf"), exported)
    found["saved"] = digest(exported)
    found["metrics"], found["after"] = train(trained, BATCHES[2:]), digest(trained.export())
    found["resumed"] = [resumed(full, bridge, folder / kind, dist=kind == "dist") for kind in ("hf", "dist")]
    found["drifted"] = drifted(trained, folder)
    return found


def head_in_use(own: Any) -> str | None:
    """What reads ``model.output_layer.weight``, as verl's fused kernels do, computes log-probs with."""
    from megatron.core.utils import unwrap_model

    (last,) = unwrap_model(own.module)
    return bits(last.output_layer.weight) if last.post_process else None


def drifted(trained: Any, folder: Path) -> list[str]:
    """The last stage's copy, changed in one number: nothing is exported or saved."""
    own = trained._engine
    if torch.distributed.get_rank() == 1:
        weights = dict(item for chunk in own.module for item in chunk.named_parameters())
        [copy] = [weight for name, weight in weights.items() if name.endswith("word_embeddings.weight")]
        with torch.no_grad():
            copy[3, 5] += 1
    sent: list[str] = []

    def export() -> None:
        sent.extend(name for name, _ in own.get_per_tensor_param()[0])

    common.use_dist_checkpoints(trained, use=False)
    errors = [attempt(export), attempt(lambda: own.save_checkpoint(str(folder / "drifted"), global_step=3))]
    assert not sent, f"{len(sent)} tensors were sent before it was noticed"
    return errors


def main() -> None:
    folder, bridge, kind = Path(sys.argv[1]), *sys.argv[2:4]
    model.CONFIG["tie_word_embeddings"] = kind == "tied"
    common.prepare(bridge)
    torch.cuda.device_count = lambda: 1  # verl seeds Megatron's generators, one for each rank, if there is a device
    common.register()
    full = folder / ("full" if kind == "untied" else "headless")  # as published tied checkpoints are
    if torch.distributed.get_rank() == 0:
        made = common.load(common.make(folder, bridge))
        if kind == "tied":
            del made[HEAD]
            common.copy(folder / "full", full, made)
    torch.distributed.barrier()
    print("=> " + json.dumps(run(folder, full, bridge)))
    cuda.end_process()


if __name__ == "__main__":
    main()
