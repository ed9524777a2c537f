"""What verl's trainers make of samples, as released and patched. ``python -m ...trainer_worker``: JSON in, JSON out.

In: a list of steps, each the ``extra_fields`` of its samples. Out: for each step and trainer both metrics, or the
error; and the counts of samples that took several requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.update(VERL_MTP_PLUGIN="off", VERL_USE_EXTERNAL_PLUGINS="none", CUDA_VISIBLE_DEVICES="")

from verl_mtp_plugin.patching import PatchEngine
from verl_mtp_plugin.rollout.acceptance_hooks import CLIENT, DATA_METRICS, QUEUE, SPEC_METRICS

from . import client, trainer
from .scenario import LENGTH, RATE


def attempt(compute: Callable[[Any], dict[str, Any] | None], step: Any) -> Any:
    """Both metrics as far as they are there, and how many others."""
    try:
        metrics = compute(step)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if metrics is None:
        return None
    found = {name: float(metrics[name]) for name in (RATE, LENGTH) if name in metrics}
    return {"acceptance": found, "others": len(set(metrics) - {RATE, LENGTH})}


def measure(steps: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {
            "ray_trainer": attempt(trainer.ray_trainer, trainer.make_batch(step)),
            "separation": attempt(trainer.separation, trainer.make_batch(step)),
            "from_queue": attempt(trainer.from_queue, step),
        }
        for step in steps
    ]


def main() -> dict[str, Any]:
    trainer.prepare()
    steps = json.load(sys.stdin)
    found: dict[str, Any] = {"bare": measure(steps), "bare_samples": asyncio.run(client.measure())}
    engine = PatchEngine()
    engine.arm([*SPEC_METRICS, *DATA_METRICS, QUEUE, *CLIENT])
    found["decisions"] = {record.id.rpartition(".")[2]: str(record.decision) for record in engine.records()}
    found["patched"] = measure(steps)
    found["patched_samples"] = asyncio.run(client.measure())
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
