"""verl's real Megatron engine trains a tiny MiMo with MTP on the CPU, through verl-mtp-plugin.

python examples/quickstart/run.py [--quick] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps-main", type=int, help="steps of the main model alone (default 200, quick 40)")
    parser.add_argument("--steps-mtp", type=int, help="steps with MTP, and of the control (default 200, quick 50)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and problems (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("quickstart-out"), help="for results (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="half a minute: fewer steps, the same checks")
    return parser.parse_args()


@contextmanager
def output_to(log: Path) -> Iterator[Console]:
    """Send what verl, Megatron and gloo print to a file, and give a console for what we print."""
    sys.stdout.flush()
    sys.stderr.flush()
    terminal, errors = os.dup(1), os.dup(2)
    with log.open("w") as file, os.fdopen(terminal, "w", closefd=False) as ours:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield Console(file=ours, width=None if ours.isatty() else 120)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(terminal, 1)
            os.dup2(errors, 2)


def main() -> int:
    started = time.time()
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    log = options.out / "verl.log"
    with output_to(log) as console:
        console.print(f"Loading verl, Megatron and the plugin; their own output goes to {log}")
        passed = run(options, console, started)
    return 0 if passed else 1


def run(options: argparse.Namespace, console: Console, started: float) -> bool:
    import report

    versions = report.versions()
    console.print("  ".join(f"{name} {found}" for name, found in versions.items() if found))
    missing = [name for name in ("verl", "megatron-core", "mbridge") if not versions[name]]
    if missing:
        console.print(
            f"[red]Not installed: {', '.join(missing)}.[/] Let the repository's noxfile make the environment:"
        )
        console.print("  python3.11 noxfile.py quickstart")
        return False
    import engine
    import model

    engine.prepare()
    model.register()
    import experiment
    import plot
    from results import Plan

    import verl_mtp_plugin

    plan = Plan(
        steps_main=options.steps_main or (40 if options.quick else 200),
        steps_mtp=options.steps_mtp or (50 if options.quick else 200),
        seed=options.seed,
        measure_every=10 if options.quick else 25,
        held_out=64 if options.quick else 256,
        margin=0.15 if options.quick else 0.25,
    )
    columns = (
        TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[losses]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:

        @contextmanager
        def bar(name: str, steps: int) -> Iterator[Callable[[engine.Step], None]]:
            task = progress.add_task(name, total=steps, losses="")

            def advance(step: engine.Step) -> None:
                mtp = "" if step.mtp_loss is None else f"  MTP {step.mtp_loss:.3f}"
                progress.update(task, advance=1, losses=f"loss {step.loss:.3f}{mtp}")

            yield advance

        study = experiment.Experiment(plan, options.out / "models", bar)
        results = study.run()
    patches = verl_mtp_plugin.report()
    report.show(console, plan, results, patches, options.out / "models" / "initial")
    seconds = time.time() - started
    report.write_json(options.out / "quickstart.json", plan, results, patches, seconds)
    plot.draw(options.out / "quickstart.png", plan, results, versions)
    console.print(f"{options.out}/quickstart.png, quickstart.json and models/after_mtp written; {seconds:.0f} s in all")
    return all(check.passed for check in results.checks)


if __name__ == "__main__":
    sys.exit(main())
