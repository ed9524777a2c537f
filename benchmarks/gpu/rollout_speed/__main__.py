"""The one command: an engine for each rate, each in a process of its own; the package says what for."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.upstream import store

#: MiMo-7B's, by its published config.json.
SIZES: Final = {
    "vocab_size": 151680,
    "intermediate_size": 11008,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rope_theta": 640000,
}
LAYERS, HIDDEN = 36, 4096
DRAFTS: Final = 3
PROMPT_TOKENS, NEW_TOKENS = 64, 256
NONE: Final = "none"


def accept_length(rate: float, drafts: int = DRAFTS) -> float:
    """Tokens of a verify step where this share of the drafts is accepted: the drafts, and one that it always yields."""
    return 1 + rate * drafts


def speculation(rate: str) -> dict[str, Any]:
    """SGLang's options, as verl gives them."""
    if rate == NONE:
        return {}
    return {
        "speculative_algorithm": "EAGLE",
        "speculative_num_steps": DRAFTS,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": DRAFTS + 1,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: one engine, all batch sizes; seconds and tokens/s of each round."""
    sglang = importlib.import_module("sglang")
    began = time.monotonic()
    batches = [int(size) for size in options.batches.split(",")]
    engine = sglang.Engine(
        model_path=str(options.model), trust_remote_code=True, load_format="dummy", dtype="bfloat16", random_seed=1,
        mem_fraction_static=options.memory, max_running_requests=max(batches), cuda_graph_bs=batches,
        disable_radix_cache=True, **speculation(options.one),
    )  # fmt: skip
    found: dict[str, Any] = {"start_s": round(time.monotonic() - began, 1), "batches": {}}
    rng = random.Random(0)

    def generate(size: int, tokens: int) -> tuple[float, list[dict[str, Any]]]:
        prompts = [[rng.randrange(300, 1000) for _ in range(PROMPT_TOKENS)] for _ in range(size)]
        sampling = {"temperature": 1.0, "max_new_tokens": tokens, "ignore_eos": True}
        began = time.monotonic()
        outputs = engine.generate(input_ids=prompts, sampling_params=sampling)
        return time.monotonic() - began, outputs

    for size in batches:
        generate(size, 32)  # what is compiled on first use is not timed
        rounds = []
        for _ in range(options.rounds):
            seconds, outputs = generate(size, NEW_TOKENS)
            tokens = sum(output["meta_info"]["completion_tokens"] for output in outputs)
            verified = sum(output["meta_info"].get("spec_verify_ct", 0) for output in outputs)
            rounds.append({"s": round(seconds, 4), "tokens_per_s": round(tokens / seconds, 1)})
            rounds[-1] |= {"accept_length": round(tokens / verified, 3)} if verified else {}
        found["batches"][str(size)] = rounds
    engine.shutdown()
    return found


def run(rate: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One engine's outcome; ``error`` where it has none."""
    result, log = options.out / f"{rate}.json", options.out / f"{rate}.log"
    result.unlink(missing_ok=True)
    environment = dict(os.environ)
    if rate != NONE:
        environment["SGLANG_SIMULATE_ACC_LEN"] = str(accept_length(float(rate)))
    given = {"--model": folder, "--out": result, "--one": rate, "--batches": options.batches}
    given |= {"--memory": options.memory, "--rounds": options.rounds}
    arguments = [f"{name}={value}" for name, value in given.items()]
    with log.open("w") as stream:
        subprocess.run(
            [sys.executable, "-m", str(__package__), *arguments], env=environment, stdout=stream, stderr=stream
        )
    if not result.is_file():
        return {"error": log.read_text(errors="replace")[-1500:]}
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def main() -> int:
    assert __package__
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}", description=sys.modules[__package__].__doc__, formatter_class=formatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for rollout_speed.json and logs")
    parser.add_argument("--rates", default=f"{NONE},0.44,0.54", help=f"shares of accepted drafts; {NONE}: no MTP")
    parser.add_argument("--batches", default="8,32,128", help="requests at a time")
    parser.add_argument("--rounds", type=int, default=3, help="of each batch size")
    parser.add_argument("--memory", type=float, default=0.8, help="SGLang's share of the GPU's")
    parser.add_argument("--limit", type=float, default=600.0, help="no engine is started after so many seconds")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out.resolve()
    if options.one:
        options.out.write_text(json.dumps(measure(options)))
        return 0
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    from benchmarks.gpu import model  # imports torch

    folder = options.out / "model"
    model.write_configuration(folder, model.configuration(LAYERS, HIDDEN, mtp_layers=1) | SIZES)
    document: dict[str, Any] = {
        "hardware": store.hardware(), "versions": store.versions(), "drafts": DRAFTS, "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS, "rates": {},
    }  # fmt: skip
    for rate in options.rates.split(","):
        if time.monotonic() - began > options.limit - 60:
            document["rates"][rate] = {"error": "no time left"}
            continue
        document["rates"][rate] = run(rate, options, folder)
        print(f"{rate}: {document['rates'][rate]}", flush=True)
        (options.out / "rollout_speed.json").write_text(store.as_text(document))
    return sum("error" in found for found in document["rates"].values())


if __name__ == "__main__":
    sys.exit(main())
