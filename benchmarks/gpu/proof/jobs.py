"""The jobs: what each item of the proof runs, on how many GPUs, and for how long about."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.gpu.upstream import acceptance, fully_async, hybrid

from .schedule import Job

#: Of pretrain.py: afterwards the model solves part of the task, and reinforcement learning has something to gain.
STEPS: Final = 400
#: Of upstream's scripts, where no GPU is to compute them.
SMALL: Final = ("--rehearse", "--steps", 2, "--prompts", 4, "--mini-batch", 2, "--responses", 2)


@dataclass(frozen=True)
class Setting:
    """What all jobs of a call share.

    Args:
        examples: a verl checkout, or its folder of MTP examples.
        results: where all that is kept goes.
        work: scratch.
        plugin: repository or wheel of the plugin.
        plain: an environment like the running one, but without the plugin, for variants without it; without this
            they are run with ``VERL_MTP_PLUGIN=off``.
        shared: others run on the same GPUs: for jobs that are not about time.
        rehearse: on a machine without GPUs, with stand-ins, and with a model that has learned nothing.
    """

    examples: Path
    results: Path
    work: Path
    plugin: Path
    plain: Path | None
    shared: bool
    rehearse: bool

    @property
    def untrained(self) -> Path:
        return self.work / "untrained"

    @property
    def trained(self) -> Path:
        return self.work / "trained"

    @property
    def data(self) -> Path:
        return self.work / "data"


def jobs(setting: Setting) -> list[Job]:
    """All of them, the most important first."""
    return [*preparation(setting), *comparisons(setting), *others(setting)]


def preparation(setting: Setting) -> Iterator[Job]:
    """Data, and a model that solves part of the task."""
    make = [python("data", setting.data), python("model", setting.untrained)]
    yield Job("model", " && ".join(make), gpus=0, usual_s=20)
    folders = ["--model", setting.untrained, "--data", setting.data, "--out", setting.trained]
    command = python("pretrain", *folders, "--steps", STEPS)
    if setting.rehearse:
        command = shlex.join(["cp", "-rT", str(setting.untrained), str(setting.trained)])
    yield Job("pretrain", command, gpus=1, usual_s=150, after=("model",))


def comparisons(setting: Setting) -> Iterator[Job]:
    """Upstream's two scripts, each three times; the two that matter most under the same load, side by side."""
    for name in sorted(fully_async.VARIANTS, key=("released", "plugin", "no_mtp").index):
        yield upstream(setting, "fully_async", name, gpus=2, usual_s=330)
    for name in hybrid.VARIANTS:
        yield upstream(setting, "hybrid", name, gpus=1, usual_s=250)


def others(setting: Setting) -> Iterator[Job]:
    """What is compared with itself over time, or needs no trained model."""
    for name in acceptance.VARIANTS:
        yield upstream(setting, "acceptance", name, "--steps", 30, gpus=1, usual_s=400)
    rehearse = ["--rehearse"] if setting.rehearse else []
    command = python("matrix.all", "--plugin", setting.plugin, "--gpus", 2, "--out", setting.results / "matrix")
    rest = f"-- {shlex.join(rehearse)}" if rehearse else ""
    yield Job("matrix", f"{command} --limit {{left}} {rest}", gpus=2, usual_s=240)
    command = python("costs", "--model", setting.untrained, "--out", setting.results / "costs", "--profile", *rehearse)
    yield Job("costs", f"{command} --limit {{left}}", gpus=1, usual_s=150, after=("model",))
    yield upstream(setting, "isolation", "frozen", gpus=1, usual_s=200)
    for name in ("trained", "attached"):  # on the rollouts of the first
        yield upstream(setting, "isolation", name, gpus=1, usual_s=200, after="isolation-frozen")
    command = python("rollout_speed", "--out", setting.results / "rollout_speed")
    if not setting.rehearse:  # it is all SGLang's
        yield Job("rollout_speed", f"{command} --limit {{left}}", gpus=1, usual_s=240, after=("model",))
    yield upstream(setting, "fully_async", "plugin", "--gpus-each", 4, "--tensor-parallel", 2, gpus=4, usual_s=330)
    output = setting.results / "weight_sync_released.json"
    options = ["--sessions", "released", "--utilization", 0.6, "--phases", "repeat,transfer_fails", *rehearse]
    command = python("weight_sync", "--model", setting.untrained, "--output", output, *options)
    yield Job("weight_sync-released", f"{command} --limit {{left}}", gpus=1, usual_s=150, after=("model",))


def python(module: str, *arguments: object) -> str:
    """A shell's command for a module of ``benchmarks.gpu``."""
    return shlex.join([sys.executable, "-m", f"benchmarks.gpu.{module}", *map(str, arguments)])


def upstream(
    setting: Setting, script: str, variant: str, *options: object, gpus: int, usual_s: float, after: str = "pretrain"
) -> Job:
    """A variant of one of upstream's scripts, on GPUs that are all its own."""
    kind = script if gpus < 4 else f"{script}_{gpus}gpus"
    folders = ["--model", setting.trained, "--data", setting.data, "--examples", setting.examples]
    folders += ["--results", setting.results, "--work", setting.work / "upstream"]
    small = (*(SMALL if setting.rehearse else ()), *(("--shared",) if setting.shared else ()))
    numbers = ",".join(str(number) for number in range(gpus))
    command = python(f"upstream.{script}", *folders, "--variants", variant, "--gpus", numbers, *options, *small)
    if setting.plain and variant in ("released", "no_mtp"):
        command = command.replace(sys.executable, shlex.quote(str(setting.plain / "bin" / "python")), 1)
        command = f'PATH={shlex.quote(str(setting.plain / "bin"))}:"$PATH" {command}'
    return Job(f"{kind}-{variant}", f"{command} --limit {{left}}", gpus, usual_s, after=(after,))
