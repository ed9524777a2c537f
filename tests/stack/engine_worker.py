"""Trains a tiny MiMo with and without MTP through verl's real Megatron engine, and prints what came of both.

``python -m tests.stack.engine_worker FOLDER mbridge|megatron-bridge packed|padded model,optimizer,extra [per_token]``.
The fourth argument is what a checkpoint holds, the fifth sets ``calculate_per_token_loss``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from . import tiny_mimo  # first: it makes the quickstart's modules importable

# isort: split
import engine
import model
from data import Problem, Problems, encode

from verl_mtp_plugin.testing import verl_engine

from .engine_expected import expected_step

STEPS = 3
MTP_SCALE = 0.3  # as examples/quickstart/engine.py sets it
MICRO_BATCH_TOKENS = 120  # several micro-batches a step, of unequal numbers of trained tokens
Weights = dict[str, torch.Tensor]


def train(trained: engine.Engine, batches: list[list[Problem]]) -> list[dict[str, float]]:
    """What verl's engine reports of one optimizer step per batch."""
    from verl.workers.utils.losses import sft_loss

    found = []
    for problems in batches:
        with trained._engine.train_mode():
            data = trained.batch(problems)
            output = trained._engine.train_batch(data, loss_function=partial(sft_loss, config=None))
            trained._engine.lr_scheduler_step()
        metrics = {name: number(value) for name, value in output["metrics"].items()}
        losses = output["loss"] if isinstance(output["loss"], list) else [output["loss"]]
        found.append({**metrics, "loss": sum(map(float, losses))})
    return found


def number(value: Any) -> float:
    """A metric of one step, which some releases report as a list of one."""
    [only] = value if isinstance(value, list) else [value]
    return float(only)


def same(a: Weights, b: Weights, names: list[str]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in names)


def digest(weights: Weights) -> str:
    """One text for all bits of all tensors."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        sha.update(name.encode() + weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def checkpoint(trained: engine.Engine, folder: Path, problems: list[Problem]) -> dict[str, Any]:
    """Save, train on, load: the weights, MTP's among them, must be those that were saved."""
    saved = trained.export()
    trained._engine.save_checkpoint(str(folder), global_step=1)
    [train_on] = train(trained, [problems])
    after = trained.export()
    trained._engine.load_checkpoint(str(folder))
    loaded = trained.export()
    [file] = folder.rglob("model.safetensors")
    written = load_file(file)
    return {
        "moved_on": not same(saved, after, [name for name in saved if "mtp" in name]),
        "restored": set(loaded) == set(saved) and same(saved, loaded, list(saved)),
        "hugging_face": set(written) == set(saved) and same(saved, written, list(saved)),
        "next_step": train_on,
        "expected_next_step": expected(trained, saved, problems),
    }


def expected(trained: engine.Engine, weights: Weights, problems: list[Problem]) -> dict[str, float]:
    return expected_step(weights, [encode(trained.tokenizer, p) for p in problems], mtp_scale=MTP_SCALE)


def main() -> None:
    folder, bridge, layout, saved = Path(sys.argv[1]), *sys.argv[2:5]
    engine.prepare(plugin=True)
    verl_engine.TRANSFORMER_CONFIG["calculate_per_token_loss"] = "per_token" in sys.argv
    tiny_mimo.prepare_bridge(bridge)
    path = tiny_mimo.make(folder / "mimo", bridge)
    made = model.load(path)
    problems = Problems(seed=1)
    batches = [problems.take(8) for _ in range(STEPS)]
    held_out = problems.take(6)
    build = partial(
        engine.Engine,
        path,
        steps=STEPS,
        vanilla_mbridge=bridge == tiny_mimo.MBRIDGE,
        remove_padding=layout == "packed",
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        ddp_config={"grad_reduce_in_fp32": True},  # everybody's default but verl 0.7's and 0.8's with Megatron-Bridge
        saved=tuple(saved.split(",")),
    )

    plain_engine = build(train_mtp=False, with_mtp=False)
    policy_before = plain_engine.export()
    log_probs_before = plain_engine.log_probs(held_out)
    policy_metrics = train(plain_engine, batches)
    policy = plain_engine.export()
    policy_log_probs = plain_engine.log_probs(held_out)
    del plain_engine

    trained = build(train_mtp=True)
    before = trained.export()
    with trained.counting_mtp_calls() as calls:
        first = trained.log_probs(held_out)
        inferring = len(calls)
        metrics = train(trained, batches)
        training = len(calls) - inferring
    weights = trained.export()
    last = trained.log_probs(held_out)
    mtp = [name for name in weights if "mtp" in name]
    shared = [name for name in weights if name not in mtp]
    found = {
        "loaded": set(before) == set(made) and same(before, made, list(made)),
        "mtp_tensors": len(mtp),
        "mtp_calls": {"inferring": inferring, "training": training},
        "metrics": metrics,
        "policy_metrics": policy_metrics,
        "expected": expected(trained, made, batches[0]),
        "mtp_changed": not any(torch.equal(before[name], weights[name]) for name in mtp if "embed" not in name),
        "policy_names_equal": set(shared) == set(policy),
        "policy_changed": not same(policy_before, policy, ["lm_head.weight"]),
        "policy_equal": set(shared) == set(policy) and same(weights, policy, shared),
        "log_probs_equal": {
            "before": all(map(torch.equal, first, log_probs_before)),
            "after": all(map(torch.equal, last, policy_log_probs)),
        },
        "weights": digest(weights),
        "checkpoint": checkpoint(trained, folder / "checkpoint", held_out),
    }
    print("=> " + json.dumps(found))


if __name__ == "__main__":
    main()
