"""MTP weights through verl's engine and one bridge: what is missing, started anew, exported, saved. Prints JSON.

``python -m tests.bridges.weights.worker FOLDER mbridge|megatron-bridge train|resume``; ``resume`` goes on, in a process
of its own, from the checkpoint that ``train`` has left in the folder.
"""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.stack.engine_worker import digest, train
from tests.stack.tiny_mimo import MBRIDGE, MEGATRON_BRIDGE

from . import common
from .common import attempt, build, is_head

# isort: split
from data import Problems

ONE = "model.mtp_layers.0.input_proj.weight"
#: What no bridge exports, and the file that it is in is not saved.
STRAY = "model.mtp_layers.0.embed_tokens.weight"
PROBLEMS = Problems(seed=1)
BATCHES = [PROBLEMS.take(8) for _ in range(3)]
#: Two steps on these, other than those before the checkpoint, give torch's Adam a state to load over. It stands in for
#: TransformerEngine's.
OTHERS = [PROBLEMS.take(8) for _ in range(2)]
CHECKPOINT, DIST_CHECKPOINTS = "checkpoint", ("checkpoint/model/dist_ckpt", "checkpoint/dist_ckpt")


def refused(folder: Path, full: Path, bridge: str) -> dict[str, Any]:
    """Checkpoints with holes, and bridges that do not know a parameter."""
    from verl_mtp_plugin.bridges.weights import export

    trained = build(full, bridge)
    own = trained._engine
    found: dict[str, Any] = {
        "no_head": attempt(lambda: build(folder / "no_head", bridge)),
        "one": attempt(lambda: build(folder / "one", bridge)),
        "close": closing(own),
    }
    load = own.bridge.load_weights if bridge == MBRIDGE else own.bridge.load_hf_weights
    with common.unmapped(own.bridge, bridge, "eh_proj"):
        found["unmapped"] = attempt(lambda: load(own.module, str(full)))
        export._known.clear()
        found["plan"] = attempt(lambda: export.check_export(own.bridge, own.module))
    export._known.clear()
    with common.unsent(own.bridge, bridge, "eh_proj"):
        found["unsent"] = attempt(trained.export)
    found["sent"] = len(trained.export())
    own.module[0].config.perform_initialization = False
    common.choose("random")
    found["uninitialized"] = attempt(lambda: load(own.module, str(folder / "one")))
    return found


def closing(own: Any) -> dict[str, Any]:
    """An export that is given up after three tensors."""
    stream, _ = own.get_per_tensor_param()
    taken = [next(stream)[0] for _ in range(3)]
    stream.close()
    return {"taken": len(set(taken)), "over": next(stream, None) is None}


def started_anew(folder: Path, full: Path, bridge: str) -> dict[str, Any]:
    """A new head on a checkpoint without one: initialized, trained, exported, saved, loaded."""
    made = common.load(full)
    with common.notices() as notices:
        trained = build(folder / "no_head", bridge, missing="random", saved=("model",))
    before = trained.export()
    found: dict[str, Any] = {
        "notices": notices,
        "statistics": common.head_statistics(trained),
        "trunk_loaded": common.same(*({n: w for n, w in of.items() if not is_head(n)} for of in (before, made))),
        "exported": set(before) == set(made),
        "losses": [step["mtp/loss_depth1"] for step in train(trained, BATCHES)],
    }
    after = trained.export()
    found["head_trained"] = not any(torch.equal(before[n], after[n]) for n in after if is_head(n))
    trained._engine.save_checkpoint(str(folder / "anew"), global_step=1)
    found["saved"] = common.same(common.load(folder / "anew"), after)
    [config] = (folder / "anew").rglob("config.json")
    trained._engine.load_checkpoint(str(folder / "anew"))
    found["loaded"] = common.same(trained.export(), after)
    found["started_from"] = common.same(build(_complete(config.parent, full), bridge).export(), after)
    partly = build(folder / "one", bridge, missing="random")
    found["partly"] = {
        "statistics": common.head_statistics(partly)["layers.0.eh_proj.weight"],
        "others_loaded": common.same(*({n: w for n, w in of.items() if n != ONE} for of in (partly.export(), made))),
    }
    return found


def _complete(saved: Path, source: Path) -> Path:
    """A folder that verl saved, with what it leaves out of the model's own files."""
    for file in source.iterdir():
        if not (saved / file.name).exists() and "safetensors" not in file.name:
            (saved / file.name).write_bytes(file.read_bytes())
    return saved


def disabled(folder: Path, full: Path, bridge: str) -> dict[str, Any]:
    """A checkpoint with a head, a model without: all else is saved, and then no model with a head resumes from that."""
    trunk = {name: tensor for name, tensor in common.load(full).items() if not is_head(name)}
    plain = build(full, bridge, with_mtp=False, saved=("model", "optimizer"))
    stream, _ = plain._engine.get_per_tensor_param()
    train(plain, BATCHES[:1])
    found: dict[str, Any] = {"stream": inspect.getgeneratorstate(stream), "watched": "watched" in repr(stream)}
    weights = plain.export()
    found["policy_moved"] = set(weights) == set(trunk) and not common.same(weights, trunk)
    for name, use in (("plain", False), ("plain_dist", True)):
        common.use_dist_checkpoints(plain, use=use)
        plain._engine.save_checkpoint(str(folder / name), global_step=1)
    found["saved"] = common.same(common.load(folder / "plain"), weights)

    trained = build(full, bridge, saved=("model", "optimizer"))
    train(trained, OTHERS)
    before = trained.export()
    found["resume_hf"] = attempt(lambda: trained._engine.load_checkpoint(str(folder / "plain")))
    common.use_dist_checkpoints(trained, use=True)
    found["resume_dist"] = attempt(lambda: trained._engine.load_checkpoint(str(folder / "plain_dist")))
    found["untouched"] = common.same(before, trained.export())
    [path] = {metadata.parent for metadata in (folder / "plain_dist").rglob(".metadata") if _has_model(metadata.parent)}
    options = {"use_dist_checkpointing": True, "dist_checkpointing_path": str(path)}
    found["start_dist"] = attempt(lambda: build(full, bridge, options=options))
    found["dist_folder"] = str(path)
    return found


def _has_model(folder: Path) -> bool:
    from megatron.core import dist_checkpointing

    return "embedding.word_embeddings.weight" in dist_checkpointing.load_tensors_metadata(str(folder))


def spoilt(folder: Path, full: Path, bridge: str) -> dict[str, Any]:
    """A folder of which one file cannot be saved, since the bridge never exports a tensor that is in it.

    It can where the model's family is known to have such copies.
    """
    from verl_mtp_plugin.bridges.weights import superfluous
    from verl_mtp_plugin.models.lookup import family_of

    weights = common.load(full) | {STRAY: torch.zeros(2)}
    trained = build(common.copy(full, folder / "stray", weights), bridge, saved=("model",))
    error = attempt(lambda: trained._engine.save_checkpoint(str(folder / "spoilt"), global_step=1))
    lost = weights.keys() - common.load(folder / "spoilt").keys() - {STRAY}
    found = {"error": error, "lost": sorted(filter(is_head, lost))}
    if bridge == MEGATRON_BRIDGE:
        family = family_of(trained._engine.model_config.hf_config)
        assert family is not None
        with patch.object(superfluous, "family_of", lambda config: replace(family, copies=("embed_tokens.weight",))):
            trained._engine.save_checkpoint(str(folder / "copies"), global_step=1)
        found["copies"] = sorted(weights.keys() - common.load(folder / "copies").keys())
    return found


def trained(folder: Path, full: Path, bridge: str) -> dict[str, Any]:
    """Two steps, a checkpoint of both kinds, and a third step, which whoever resumes has to repeat."""
    found = build(full, bridge, saved=("model", "hf_model", "optimizer", "extra"))
    train(found, BATCHES[:2])
    common.use_dist_checkpoints(found, use=True)
    found._engine.save_checkpoint(str(folder / CHECKPOINT), global_step=2)
    saved = found.export()
    return {
        "hugging_face": common.same(common.load(folder / CHECKPOINT), saved),
        "saved": digest(saved),
        "metrics": train(found, BATCHES[2:]),
        "after": digest(found.export()),
    }


def resumed(folder: Path, full: Path, bridge: str) -> dict[str, Any]:
    """The third step again, from each of the two; the first from a folder that has no head at all."""
    [path] = [folder / name for name in DIST_CHECKPOINTS if (folder / name / ".metadata").exists()]
    options = {"use_dist_checkpointing": True, "dist_checkpointing_path": str(path)}
    found: dict[str, Any] = {}
    for kind, resuming in (
        ("dist", build(folder / "no_head", bridge, options=options)),
        ("hf", build(full, bridge)),
    ):
        found[kind] = {"started": digest(resuming.export())}
        train(resuming, OTHERS)
        resuming._engine.load_checkpoint(str(folder / CHECKPOINT))
        common.separate_steps(resuming)
        found[kind] |= {
            "loaded": digest(resuming.export()),
            "metrics": train(resuming, BATCHES[2:]),
            "after": digest(resuming.export()),
        }
        if kind == "dist" and bridge == MEGATRON_BRIDGE:
            # mbridge saves only what it has loaded.
            resuming._engine.save_checkpoint(str(folder / "resaved"), global_step=3)
            common.use_dist_checkpoints(resuming, use=False)
            resuming._engine.save_checkpoint(str(folder / "resaved_hf"), global_step=3)
            found[kind]["resaved"] = common.same(common.load(folder / "resaved_hf"), resuming.export())
    return found


def main() -> None:
    folder, bridge, phase = Path(sys.argv[1]), *sys.argv[2:4]
    common.prepare(bridge)
    if phase == "resume":
        common.register()
        print("=> " + json.dumps(resumed(folder, folder / "full", bridge)))
        return
    full = common.make(folder, bridge)
    made = common.load(full)
    common.copy(full, folder / "no_head", {name: w for name, w in made.items() if not is_head(name)})
    common.copy(full, folder / "one", {name: w for name, w in made.items() if name != ONE}, files=1)
    cases = (refused, started_anew, disabled, spoilt, trained)
    print("=> " + json.dumps({case.__name__: case(folder, full, bridge) for case in cases}))


if __name__ == "__main__":
    main()
