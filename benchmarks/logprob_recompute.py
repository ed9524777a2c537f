"""What MTP costs where it is not trained: log-prob recompute, and training steps with ``enable_train=False``.

    VERL_MTP_LAYERS=... python benchmarks/logprob_recompute.py --json FILE    # on a machine with a GPU
    python benchmarks/logprob_recompute.py --render FILE                      # write docs/RESULTS.md from that
    ... --json FILE --device cpu --hidden 64 --layers 2 --vocabulary 512 --length 64    # does it run?

All contenders of a comparison run in one process, in turns, and are compared sample by sample. *recompute*: forward
under no_grad. *step*: forward with labels=None, log-probs of the labels, backward; the plugin is activated or
deactivated before each one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from types import MethodType
from typing import Any, Final

import gpu_models
from gpu_timing import Contender, in_turns, ratios, say
from logprob_recompute_page import OFF, PLAIN, RECOMPUTE, STEP, misses, write

MEGATRON_CORE: Final = ("0.16.1", gpu_models.stacks.MEGATRON_CORE[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="run, and write what was found, part by part")
    parser.add_argument("--render", type=Path, help="write docs/RESULTS.md from such a file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--megatron-core", nargs="+", default=list(MEGATRON_CORE))
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=151_680)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=45, help="measure for this long, per megatron-core")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    if not (options.json or options.render):
        parser.error("give --json FILE, --render FILE or both")
    if options.json:
        options.json.unlink(missing_ok=True)
        names = ("json", "device", "hidden", "layers", "vocabulary", "rows", "length", "rounds", "seconds")
        given = [part for name in names for part in (f"--{name}", str(getattr(options, name)))]
        for version in options.megatron_core:
            status = gpu_models.run_worker(
                "logprob_recompute.py", version, [*given, "--worker", version], options.seconds + 90
            )
            say(f"megatron-core {version}: exit status {status}")
    if options.json and not options.json.exists():
        raise SystemExit("nothing was measured")
    document = json.loads((options.json or options.render).read_text())
    if options.render:
        write(document)
    missed = misses(document)
    print(json.dumps({"missed": missed}, indent=1))
    return 1 if missed else 0


def work(options: argparse.Namespace) -> int:
    """One release: recompute, then steps; the file holds what has been measured so far."""
    start = time.monotonic()
    device, versions = gpu_models.prepare(options.worker, options.device)
    size = gpu_models.Size(options.hidden, options.layers, 3 * options.hidden, options.vocabulary)
    document = json.loads(options.json.read_text()) if options.json.exists() else {"releases": {}}
    document |= {"device": gpu_models.device_name(options.device), "hidden": options.hidden, "layers": options.layers,
                 "vocabulary": options.vocabulary, "tokens": options.rows * options.length,
                 "verl": gpu_models.VERL}  # fmt: skip
    found: dict[str, Any] = {"versions": versions}
    document["releases"][options.worker] = found
    bench = Bench(device, size, options.rows, options.length)
    say(f"megatron-core {options.worker}: models built after {time.monotonic() - start:.0f} s")
    for part, contenders in {"recompute": bench.recompute, "step": bench.step}.items():
        try:
            deadline = time.monotonic() + options.seconds / 2
            series = in_turns(device, contenders(), rounds=options.rounds, deadline=deadline)
            first, *others = series
            found[part] = {name: one.summary() for name, one in series.items()}
            found[f"{part}_ratios"] = {name: ratios(series[name], series[first]) for name in others}
            say(f"  {part}: {json.dumps(found[f'{part}_ratios'])}")
        except Exception:  # the rest is still wanted
            found[part] = {"error": traceback.format_exc()[-600:]}
            say(traceback.format_exc())
        options.json.write_text(json.dumps(document, indent=1))
    try:
        found["mtp_calls"] = bench.mtp_calls()
    except Exception:
        found["mtp_calls"] = {"error": traceback.format_exc()[-600:]}
    say(f"  MTP calls: {found['mtp_calls']}")
    options.json.write_text(json.dumps(document, indent=1))
    return 0


class Bench:
    """A model with one MTP depth and one without, and what is done with them."""

    def __init__(self, device: Any, size: gpu_models.Size, rows: int, length: int) -> None:
        import torch

        self.with_mtp, self.plain = (gpu_models.build(device, size, mtp=mtp) for mtp in (1, None))
        ids = torch.randint(size.vocabulary, (rows, length + 1)).to(device)
        position = torch.arange(length).expand(rows, -1).contiguous().to(device)
        self.inputs = {"input_ids": ids[:, :-1].contiguous(), "position_ids": position, "attention_mask": None}
        self.labels = ids[:, 1:].contiguous()
        self.mask = torch.ones(rows, length).to(device)

    def ask(self, who: str | None) -> None:
        """MTP training on the model with MTP: asked for through the plugin, by verl's own patch, or not at all."""
        from verl_mtp_plugin.training.request import request

        vars(self.with_mtp).pop("_postprocess", None)
        if who == "plugin":
            request(self.with_mtp)
        elif who == "verl":
            patch = gpu_models.verl_patch()._megatron_gptmodel_postprocess
            self.with_mtp._postprocess = MethodType(patch, self.with_mtp)

    def forward(self, model: Any, labels: bool) -> None:
        import torch

        given = {"labels": self.labels, "loss_mask": self.mask} if labels else {"labels": None}
        with torch.no_grad():
            output = model(**self.inputs, **given)
        assert output.dim() == 3, "logits were asked for"

    def recompute(self) -> dict[str, Contender]:
        self.with_mtp.eval()
        self.plain.eval()
        names = list(RECOMPUTE)
        return {
            PLAIN: Contender(lambda: self.forward(self.plain, False)),
            names[0]: Contender(lambda: self.forward(self.with_mtp, False), lambda: self.ask("plugin")),
            names[1]: Contender(lambda: self.forward(self.with_mtp, True), lambda: self.ask("plugin")),
            names[2]: Contender(lambda: self.forward(self.with_mtp, True), lambda: self.ask("verl")),
        }

    def step(self) -> dict[str, Contender]:
        import torch.nn.functional as F

        from verl_mtp_plugin import activate, deactivate

        self.ask(None)

        def contender(model: Any, plugin: bool) -> Contender:
            def before() -> None:
                (activate if plugin else deactivate)()
                for one in (self.with_mtp, self.plain):
                    one.train().zero_grad(set_to_none=True)

            def run() -> None:
                logits = model(**self.inputs, labels=None)
                F.cross_entropy(logits.flatten(0, 1).float(), self.labels.flatten()).backward()

            return Contender(run, before)

        names = list(STEP)
        return {
            OFF: contender(self.plain, False),
            names[0]: contender(self.plain, True),
            names[1]: contender(self.with_mtp, True),
            names[2]: contender(self.with_mtp, False),
        }

    def mtp_calls(self) -> dict[str, int]:
        """Calls of the MTP layer in one recompute of each kind."""
        from tests.contract.world import counting
        from verl_mtp_plugin import activate

        activate()
        found = {}
        for name, contender in list(self.recompute().items())[1:]:
            contender.before()
            with counting(self.with_mtp) as calls:
                contender.run()
            found[name] = calls["mtp"]
        return found


if __name__ == "__main__":
    sys.exit(main())
