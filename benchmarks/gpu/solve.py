"""How well SGLang solves data.py's test problems with a model, and how many drafts of its MTP layer it accepts.

    python -m benchmarks.gpu.solve MODEL --data DATA [--drafts 3] [--temperature 1.0] [--out FILE.json]

Prints JSON, and the first two conversations.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.reward import compute_score


def summary(outputs: list[dict[str, Any]], truths: list[str], drafts: int, seconds: float) -> dict[str, Any]:
    """Of SGLang's outputs. A draft is accepted where a verification yields more than the token that it always does."""
    tokens = sum(output["meta_info"]["completion_tokens"] for output in outputs)
    verified = sum(output["meta_info"].get("spec_verify_ct", 0) for output in outputs)
    scores = [compute_score("", output["text"], truth) for output, truth in zip(outputs, truths)]
    found: dict[str, Any] = {
        "problems": len(outputs),
        "solved": round(sum(scores) / len(scores), 4),
        "mean_tokens": round(tokens / len(outputs), 1),
        "cut_short": sum(output["meta_info"]["finish_reason"]["type"] == "length" for output in outputs),
        "tokens_per_second": round(tokens / seconds, 1),
    }
    if verified:
        found["accept_length"] = round(tokens / verified, 3)
        found["accept_rate"] = round((tokens - verified) / (verified * drafts), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--drafts", type=int, default=3, help="of the MTP layer for each token; 0: no speculation")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--memory", type=float, default=0.4, help="SGLang's share of the GPU's")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pandas = importlib.import_module("pandas")
    sglang = importlib.import_module("sglang")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
    rows = pandas.read_parquet(args.data / "test.parquet")
    prompts = [
        tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
        for prompt in rows["prompt"]
    ]
    speculation: dict[str, Any] = {}
    if args.drafts:
        speculation = {
            "speculative_algorithm": "EAGLE",
            "speculative_num_steps": args.drafts,
            "speculative_eagle_topk": 1,
            "speculative_num_draft_tokens": args.drafts + 1,
        }
    engine = sglang.Engine(
        model_path=str(args.model), trust_remote_code=True, mem_fraction_static=args.memory, **speculation
    )
    sampling = {"temperature": args.temperature, "max_new_tokens": 512}
    engine.generate(prompts[:8], sampling)  # what is compiled on first use is not timed
    began = time.monotonic()
    outputs = engine.generate(prompts, sampling)
    seconds = time.monotonic() - began
    engine.shutdown()
    found = summary(outputs, [reward["ground_truth"] for reward in rows["reward_model"]], args.drafts, seconds)
    print(json.dumps(found, indent=1))
    for prompt, output in list(zip(prompts, outputs))[:2]:
        print(f"{prompt}{output['text']}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
