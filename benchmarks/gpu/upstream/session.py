"""Runs the variants of one script, several side by side where there are GPUs for it, and keeps what each left."""

from __future__ import annotations

import argparse
import queue
import shutil
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from . import harvest, process, recipe, rehearse, scripts, store

ROOT: Final = Path(__file__).resolve().parents[3]
RESULTS: Final = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Plan:
    """One script and what is put around it. ``overrides`` is asked for each variant's, in the order they are given."""

    kind: str  # the name of the results' file
    script: str
    variants: Mapping[str, recipe.Variant]
    variables: Callable[[recipe.Sizes, recipe.Files], dict[str, str]]
    overrides: Callable[[recipe.Variant, recipe.Sizes, recipe.Files, argparse.Namespace], dict[str, Any]]
    log_key: str = "reward"  # below which this script's reward options lie


def arguments(plan: Plan, sizes: recipe.Sizes) -> argparse.ArgumentParser:
    """The options that all scripts share."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of the MiMo to train (Hugging Face layout)")
    add("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    add("--reward", type=Path, default=ROOT / "benchmarks" / "gpu" / "reward.py", help="file with compute_score")
    add("--examples", type=Path, help="a verl checkout, or its examples/mtp_trainer")
    add("--variants", default=",".join(plan.variants), help=f"of {', '.join(plan.variants)}")
    add("--gpus", default="0", help="GPUs for all variants together, such as 0,1,2; variants that fit run side by side")
    add("--limit", type=float, default=560.0, help="seconds for all variants together")
    add("--silence", type=float, default=180.0, help="seconds without a line of output after which a run is ended")
    add("--results", type=Path, default=RESULTS, help="folder for KIND.json and the logs")
    add("--work", type=Path, default=Path("/tmp/verl-mtp-upstream"), help="scratch folder")
    add("--again", action="store_true", help="also run variants that the results have already")
    add("--name", default="", help="appended to the names of the variants in the results")
    add("--flash-attention", action="store_true", help="flash-attn is installed: leave attention_backend alone")
    add("--fused-gradients", action="store_true", help="Apex is installed: leave gradient_accumulation_fusion alone")
    add("--shared", action="store_true", help="others run on these GPUs too: a small KV cache, and times mean nothing")
    add("--rehearse", action="store_true", help="on a machine without GPUs, with stand-ins for what needs them")
    add("--override", action="append", default=[], metavar="KEY=VALUE", help="one more for verl; can be repeated")
    parser.set_defaults(began=time.monotonic())
    for name, value in vars(sizes).items():
        add(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser


def sizes_of(options: argparse.Namespace, sizes: recipe.Sizes) -> recipe.Sizes:
    """The sizes that were asked for, of the same class."""
    return replace(sizes, **{name: getattr(options, name) for name in vars(sizes)})


def command_of(
    plan: Plan, variant: recipe.Variant, sizes: recipe.Sizes, files: recipe.Files, options: argparse.Namespace
) -> tuple[scripts.Script, dict[str, str], list[str]]:
    """The script to run (a trimmed copy where the plugin is off and verl refuses a line), variables and overrides."""
    script = scripts.find(plan.script, options.examples)
    overrides = plan.overrides(variant, sizes, files, options) | (recipe.shared(sizes) if options.shared else {})
    log_key = recipe.LOG_KEY.format(plan.log_key)
    if variant.without_plugin:  # what the plugin supplies has to be given by hand
        script = scripts.trimmed(script, files.work / "script")
        if "overlong_buffer_cfg.log" not in script.path.read_text():
            overrides[log_key] = False
    variables = recipe.environment(variant, f"{plan.kind}_{variant.name}", files) | plan.variables(sizes, files)
    return script, variables, [*recipe.as_arguments(overrides), *options.override]


def run_variant(
    plan: Plan, variant: recipe.Variant, options: argparse.Namespace, sizes: recipe.Sizes, gpus: Sequence[int],
    limit_s: float, together: int,
) -> bool:  # fmt: skip
    """Run one variant and write its result; whether it did all its steps."""
    name = variant.name + options.name
    work = options.work / plan.kind / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    files = recipe.Files(options.model.resolve(), options.data.resolve(), options.reward.resolve(), work)
    script, variables, overrides = command_of(plan, variant, sizes, files, options)
    stand_ins = rehearse.variables(work, len(gpus)) if options.rehearse else {}
    if not options.shared:
        process.wait_until_free(gpus)
    print(f"{plan.kind}/{name}: starts on GPU {gpus}, at most {limit_s:.0f} s", flush=True)
    log = work / "log.txt"
    command = ["bash", str(script.path), *overrides]
    done = process.run(command, variables | stand_ins, work, log, gpus, limit_s, options.silence)
    gathered = gather(log, work / "metrics.jsonl")
    result = {
        "title": variant.title,
        "rehearsed": options.rehearse,
        "plugin": store.versions().get("verl-mtp-plugin", "not installed"),
        "status": done.status,
        "timed_out": done.timed_out,
        "wall_s": round(done.seconds, 1),
        "gpus": len(gpus),
        "runs_beside": together - 1,
        "shared_gpus": options.shared,
        "script_sha256": script.sha256,
        "lines_left_out_of_the_script": list(script.without),
        "environment": {key: files.named(value) for key, value in variables.items()},
        "overrides": [files.named(argument) for argument in overrides],
        "sizes": vars(sizes),
        **gathered,
        "peak_mib": {str(gpu): max((used for _, used in samples), default=0) for gpu, samples in done.memory.items()},
        "memory_mib": {str(gpu): harvest.thinned(samples) for gpu, samples in done.memory.items()},
    }
    store.add(options.results / f"{plan.kind}.json", {"kind": plan.kind, "script": plan.script}, name, result)
    keep_log(log, options.results / f"{plan.kind}.logs.zip", name, files)
    done_steps = len(result["steps"].get("step", ()))
    print(f"{plan.kind}/{name}: status {done.status}, {done_steps} steps logged, {done.seconds:.0f} s", flush=True)
    for line in result["errors"] if done.status else []:
        print(f"  {line}", flush=True)
    return done.status == 0


def gather(log: Path, metrics: Path) -> dict[str, Any]:
    """All that log and metrics say."""
    decode = harvest.decode_lines(log)
    times = harvest.milestones(log)
    return {
        "startup_s": times,
        "steps": harvest.steps(metrics),
        "decode": harvest.decode_summary(decode, after_s=times.get("first_step", 0.0))
        or harvest.decode_summary(decode),
        "decode_by_step": harvest.per_step(decode, log),
        "plugin_said": harvest.plugin_lines(log),
        "errors": harvest.errors(log),
    }


def keep_log(log: Path, archive: Path, name: str, files: recipe.Files) -> None:
    """The log into an archive of all. It is for whoever ran this, and not part of the results."""
    with store.alone(archive.parent), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variant that is run again has a second entry: the later one counts
        with zipfile.ZipFile(archive, "a", zipfile.ZIP_LZMA) as logs:
            logs.writestr(f"{name}.log", files.named(log.read_text(errors="replace")))


def run(plan: Plan, options: argparse.Namespace, sizes: recipe.Sizes, gpus_each: int) -> int:
    """Run the chosen variants; the exit status is the number of those that did not end well."""
    known = store.load(options.results / f"{plan.kind}.json").get("variants", {})
    names = [name for name in options.variants.split(",") if name]
    unknown = [name for name in names if name not in plan.variants]
    if unknown:
        raise SystemExit(f"found --variants {', '.join(unknown)}; expected some of {', '.join(plan.variants)}")
    waiting: queue.SimpleQueue[recipe.Variant] = queue.SimpleQueue()
    wanted = [n for n in names if options.again or known.get(n + options.name, {}).get("status") != 0]
    for name in wanted:
        waiting.put(plan.variants[name])
    gpus = [int(gpu) for gpu in options.gpus.split(",")]
    groups = [gpus[at : at + gpus_each] for at in range(0, len(gpus) - gpus_each + 1, gpus_each)][: len(wanted)]
    if wanted and not groups:
        raise SystemExit(f"found --gpus {options.gpus}; expected at least {gpus_each}: what one variant needs")
    deadline, failed = options.began + options.limit, []

    def work(group: list[int]) -> None:
        while not waiting.empty():
            try:
                variant = waiting.get_nowait()
            except queue.Empty:
                return
            left = deadline - time.monotonic()
            if left < 60:
                print(f"{plan.kind}/{variant.name}: no time left, run again for it", flush=True)
                failed.append(variant.name)
            elif not run_variant(plan, variant, options, sizes, group, left, len(groups)):
                failed.append(variant.name)

    threads = [threading.Thread(target=work, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(failed)
