"""Memory and time of the MTP loss: ours, verl's patch on the same megatron-core, and a plain materialised one.

    VERL_MTP_LAYERS=... python benchmarks/mtp_loss.py --json FILE      # on a machine with a GPU; verl is not needed
    python benchmarks/mtp_loss.py --render FILE                        # write docs/RESULTS.md from that
    ... --json FILE --device cpu --hidden 64 --vocabulary 512 --tokens 64 128    # does it run?

Two levels. *In the model*: the real ``GPTModel._postprocess`` with MTP and labels, once the plugin's and once verl's
patch, on the same model, forward and backward. The MTP layers are replaced by ready hidden states, and of the policy's
own logits one row is computed, so that what is left is the MTP loss. *Alone*: ``chunked_loss`` against PyTorch's
``cross_entropy`` on full logits. No weight asks for a gradient, so nobody pays for the head's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

import gpu_models
from gpu_timing import Contender, in_turns, say

MEGATRON_CORE: Final = (
    "0.16.1",
    gpu_models.stacks.MEGATRON_CORE[-1],
)  # all sizes on the first, the middle one on the others
TOKENS: Final = (4096, 8192, 16_384, 32_768, 65_536)
FRACTIONS: Final = (1.0, 0.5)
IN_MODEL: Final = ("plugin", "verl")
ALONE: Final = ("plugin_alone", "plain_alone")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="run, and write what was found, cell by cell")
    parser.add_argument("--render", type=Path, help="write docs/RESULTS.md from such a file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--megatron-core", nargs="+", default=list(MEGATRON_CORE))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151_680)
    parser.add_argument("--chunks", nargs="*", type=int, default=[], help="also try these chunk sizes")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--each", type=int, default=3, help="samples per round")
    parser.add_argument("--seconds", type=float, default=150, help="stop after this long, per megatron-core")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    if not (options.json or options.render):
        parser.error("give --json FILE, --render FILE or both")
    if options.json:
        options.json.unlink(missing_ok=True)
        for number, version in enumerate(options.megatron_core):
            tokens = [middle(options.tokens)] if number else options.tokens
            status = gpu_models.run_worker(
                "mtp_loss.py", version, ["--worker", version, *arguments(options, tokens)], options.seconds + 90
            )
            say(f"megatron-core {version}: exit status {status}")
    if options.json and not options.json.exists():
        raise SystemExit("nothing was measured")
    import mtp_loss_page

    document = json.loads((options.json or options.render).read_text())
    if options.render:
        mtp_loss_page.write(document)
    verdicts = mtp_loss_page.verdicts(document)
    print(json.dumps(verdicts, indent=1))
    return 0 if verdicts and all(verdict["met"] for verdict in verdicts) else 1


def arguments(options: argparse.Namespace, tokens: list[int]) -> list[str]:
    """The worker's command line, but for the release."""
    names = ("json", "device", "hidden", "vocabulary", "rounds", "each", "seconds")
    plain = [part for name in names for part in (f"--{name}", str(getattr(options, name)))]
    lists = {"--megatron-core": options.megatron_core, "--tokens": tokens, "--chunks": options.chunks}
    return plain + [part for name, values in lists.items() for part in (name, *map(str, values))]


def middle(tokens: list[int]) -> int:
    return sorted(tokens)[len(tokens) // 2]


def work(options: argparse.Namespace) -> int:
    """One release: measure what there is time for; the file holds what has been measured so far."""
    deadline = time.monotonic() + options.seconds
    device, versions = gpu_models.prepare(options.worker, options.device)
    from mtp_loss_cases import Bench

    document = json.loads(options.json.read_text()) if options.json.exists() else {"cells": [], "releases": {}}
    document |= {"device": gpu_models.device_name(options.device), "hidden": options.hidden,
                 "vocabulary": options.vocabulary, "verl": gpu_models.VERL}  # fmt: skip
    document["releases"][options.worker] = versions

    def keep(what: str, found: Any) -> None:
        document[what] = [*document[what], found] if isinstance(document.get(what), list) else found
        options.json.write_text(json.dumps(document, indent=1))

    bench = Bench(device, gpu_models.Size(options.hidden, 1, options.hidden, options.vocabulary))
    say(f"megatron-core {options.worker}: model built")
    first = options.worker == options.megatron_core[0]
    if first:
        keep("agreement", guarded(bench.agreement))
    sizes = [(tokens, fraction) for tokens in options.tokens for fraction in FRACTIONS]
    for tokens, fraction in sizes:
        if time.monotonic() > deadline:
            break
        for names in (IN_MODEL, ALONE) if first else (IN_MODEL,):
            say(f"  {tokens} tokens, mask {fraction}: {', '.join(names)}")
            contenders = bench.contenders(tokens, fraction, names)
            for name, found in measure(device, contenders, options, deadline).items():
                keep("cells", {"megatron_core": options.worker, "tokens": tokens, "fraction": fraction, "who": name,
                               **found})  # fmt: skip
            bench.forget()
    if first and time.monotonic() < deadline:
        keep("variants", guarded(lambda: measure(device, bench.variants(middle(options.tokens), options.chunks),
                                                 options, deadline)))  # fmt: skip
    return 0


def measure(device: Any, contenders: dict[str, Contender], options: Any, deadline: float) -> dict[str, Any]:
    series = in_turns(device, contenders, rounds=options.rounds, each=options.each, free=True, deadline=deadline + 20)
    found = {name: one.summary() for name, one in series.items()}
    for name, summary in found.items():
        say(f"    {name}: {summary}")
    return found


def guarded(function: Any) -> Any:
    try:
        return function()
    except Exception:  # the rest is still wanted
        say(traceback.format_exc())
        return {"error": traceback.format_exc()[-600:]}


if __name__ == "__main__":
    sys.exit(main())
