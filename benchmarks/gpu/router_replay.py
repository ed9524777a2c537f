"""Router replay beside a drafter with experts: whose experts does SGLang report for a request?

    python -m benchmarks.gpu.router_replay --out DIR

One GPU, three minutes. A small GLM-4.5 (experts in all layers and in the MTP layer; weights at random but for those
that make drafts likely to be accepted, see :mod:`.chain_model`) answers the same prompts greedily in three engines:
without MTP, with MTP and the plugin, with MTP and SGLang as released. As far as the answers are the same, the experts
of each token and layer are compared with those of the engine without MTP. Exit status 0 if those of the plugin agree.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.gpu.upstream import store

if TYPE_CHECKING:
    from torch import Tensor

LAYERS, HEADS, HEAD_DIM = 4, 8, 64
EXPERTS, TOP_K, INNER = 128, 8, 128
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 32, 64
#: Share of (token, layer) pairs whose experts may differ by rounding: a verify step computes four tokens at a time.
ROUNDING: Final = 0.02
SPECULATION: Final = {
    "speculative_algorithm": "EAGLE",
    "speculative_num_steps": 3,
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 4,
}
VARIANTS: Final = ("no_mtp", "plugin", "released")


def configuration() -> dict[str, Any]:
    from benchmarks.gpu.chain_model import BEGIN, END, HIDDEN, VOCABULARY

    return {
        "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "torch_dtype": "bfloat16",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "moe_intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2,
        "head_dim": HEAD_DIM, "partial_rotary_factor": 0.5, "attention_bias": False, "use_qk_norm": False,
        "n_routed_experts": EXPERTS, "num_experts_per_tok": TOP_K, "n_shared_experts": 1, "n_group": 1,
        "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "first_k_dense_replace": 0,
        "num_nextn_predict_layers": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000, "hidden_act": "silu", "tie_word_embeddings": False,
        "bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": END,
    }  # fmt: skip


def weights() -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, bfloat16 but for the router's bias; matrices ``[out, in]``."""
    import torch

    from benchmarks.gpu import chain_model
    from benchmarks.gpu.model import DEVIATION

    hidden, generator = chain_model.HIDDEN, torch.Generator().manual_seed(0)

    def matrix(name: str, rows: int, columns: int) -> tuple[str, Tensor]:
        return f"{name}.weight", (torch.randn(rows, columns, generator=generator) * DEVIATION).to(torch.bfloat16)

    def norm(name: str) -> tuple[str, Tensor]:
        return f"{name}.weight", torch.ones(hidden, dtype=torch.bfloat16)

    def mlp(prefix: str) -> Iterator[tuple[str, Tensor]]:
        yield matrix(f"{prefix}.gate_proj", INNER, hidden)
        yield matrix(f"{prefix}.up_proj", INNER, hidden)
        yield matrix(f"{prefix}.down_proj", hidden, INNER)

    for prefix in (f"model.layers.{index}" for index in range(LAYERS + 1)):
        for name, heads in (("q", HEADS), ("k", HEADS // 2), ("v", HEADS // 2)):
            yield matrix(f"{prefix}.self_attn.{name}_proj", heads * HEAD_DIM, hidden)
        yield matrix(f"{prefix}.self_attn.o_proj", hidden, HEADS * HEAD_DIM)
        yield norm(f"{prefix}.input_layernorm")
        yield norm(f"{prefix}.post_attention_layernorm")
        yield matrix(f"{prefix}.mlp.gate", EXPERTS, hidden)
        yield f"{prefix}.mlp.gate.e_score_correction_bias", torch.zeros(EXPERTS)
        yield from mlp(f"{prefix}.mlp.shared_experts")
        for expert in range(EXPERTS):
            yield from mlp(f"{prefix}.mlp.experts.{expert}")
    yield norm("model.norm")
    mtp = f"model.layers.{LAYERS}"
    for name in ("enorm", "hnorm", "shared_head.norm"):
        yield norm(f"{mtp}.{name}")
    for name, tensor in chain_model.chain(generator):
        if "input_proj" in name:  # MiMo's takes [hidden state, embedding], GLM's the other way round
            yield f"{mtp}.eh_proj.weight", tensor.roll(hidden, dims=1)
        else:
            yield name, tensor


def answers(variant: str, folder: Path) -> list[dict[str, Any]]:
    """In a process of its own: tokens, and experts ``[tokens - 1][layers][top k]`` of prompt and answer, by request.

    One request at a time, so that a batch does not change what is rounded.
    """
    import numpy

    from benchmarks.gpu.chain_model import VOCABULARY

    if variant == "plugin":
        importlib.import_module("verl_mtp_plugin").activate()
    sglang = importlib.import_module("sglang")
    engine = sglang.Engine(
        model_path=str(folder), dtype="bfloat16", skip_tokenizer_init=True, mem_fraction_static=0.3,
        max_running_requests=8, cuda_graph_max_bs=8, disable_radix_cache=True, enable_return_routed_experts=True,
        disable_shared_experts_fusion=True, disable_piecewise_cuda_graph=True,
        **({} if variant == "no_mtp" else SPECULATION),
    )  # fmt: skip
    rng, found = random.Random(0), []
    for _ in range(PROMPTS):
        prompt = [rng.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)]
        sampling = {"temperature": 0.0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
        output = engine.generate(input_ids=prompt, sampling_params=sampling, return_routed_experts=True)
        experts: Any = output["meta_info"]["routed_experts"]
        if isinstance(experts, str):
            import base64

            experts = numpy.frombuffer(base64.b64decode(experts), dtype=numpy.int32)
        experts = numpy.asarray(experts).reshape(-1, LAYERS, TOP_K)
        numbers = {"verify": output["meta_info"].get("spec_verify_ct", 0)}
        found.append({"tokens": list(output["output_ids"]), "experts": experts.tolist(), **numbers})
    engine.shutdown()
    return found


def compared(reference: list[dict[str, Any]], found: list[dict[str, Any]]) -> dict[str, Any]:
    """By layer, the share of tokens whose experts differ from the reference's, up to where the answers part."""
    differ, pairs, same = [0] * LAYERS, 0, 0
    for wanted, got in zip(reference, found, strict=True):
        agree = next((i for i, (a, b) in enumerate(zip(wanted["tokens"], got["tokens"])) if a != b), NEW_TOKENS)
        same += agree == NEW_TOKENS
        rows = PROMPT_TOKENS + agree - 1  # the last token's experts have not been computed yet
        if min(len(wanted["experts"]), len(got["experts"])) < rows:
            raise ValueError(f"experts of {len(got['experts'])} tokens, of {rows} needed")
        pairs += rows
        for a, b in zip(wanted["experts"][:rows], got["experts"][:rows]):
            for layer in range(LAYERS):
                differ[layer] += set(a[layer]) != set(b[layer])
    steps = sum(answer["verify"] for answer in found)
    share = [round(count / pairs, 4) for count in differ]
    return {"identical_answers": same, "tokens": pairs, "differ_by_layer": share, "verify_steps": steps}


def run(variant: str, folder: Path, out: Path) -> list[dict[str, Any]]:
    """One engine's answers.

    Raises:
        RuntimeError: it ended without any; the message is the end of its log.
    """
    result, log = out / f"{variant}.answers.json", out / f"{variant}.log"
    result.unlink(missing_ok=True)
    environment = {**os.environ, "VERL_MTP_PLUGIN": "auto" if variant == "plugin" else "off"}
    arguments = ["--out", str(out), "--one", variant, "--model", str(folder)]
    with log.open("w") as stream:
        command = [sys.executable, "-m", "benchmarks.gpu.router_replay", *arguments]
        subprocess.run(command, env=environment, stdout=stream, stderr=stream, timeout=300)
    if not result.is_file():
        raise RuntimeError(f"{variant}: {log.read_text(errors='replace')[-2000:]}")
    found: list[dict[str, Any]] = json.loads(result.read_text())
    return found


def main() -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for router_replay.json and logs")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="what an earlier call has left out")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = answers(options.one, options.model)
        (options.out / f"{options.one}.answers.json").write_text(json.dumps(found))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    from benchmarks.gpu import model  # imports torch

    folder = options.out / "model"
    model.write(folder, configuration(), dict(weights()))
    file, known = options.out / "router_replay.json", options.out / f"{VARIANTS[0]}.answers.json"
    document = json.loads(file.read_text()) if file.is_file() else {"variants": {}}
    document |= {"hardware": store.hardware(), "versions": store.versions()}
    reference: list[dict[str, Any]] = json.loads(known.read_text()) if known.is_file() else []
    for variant in options.variants.split(","):
        try:
            found = run(variant, folder, options.out)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            document["variants"][variant] = {"error": str(error)}
        else:
            reference = found if variant == VARIANTS[0] else reference
            document["variants"][variant] = compared(reference, found)
        print(f"{variant}: {document['variants'][variant]}", flush=True)
        file.write_text(store.as_text(document))
    ours = document["variants"].get("plugin", {})
    return 0 if max(ours.get("differ_by_layer", [1.0])) <= ROUNDING and ours.get("verify_steps") else 1


if __name__ == "__main__":
    sys.exit(main())
