"""Fused log-prob kernels beside MTP on a GPU: verl's own Triton kernel and forward functions, on megatron-core.

    VERL_MTP_LAYERS=... python benchmarks/gpu_fused.py --json FILE     # needs a GPU, Triton, and no network
    python benchmarks/gpu_fused.py --render FILE                       # write docs/RESULTS.md from that

verl as a whole cannot be imported on a bare GPU machine. Its kernel, its fused and its plain forward function are
loaded from the release by path, unchanged; stood in for are the packages around them, which would pull in Ray and
tensordict, and three names that they take from there (:func:`load_verl`). The engine: tests/stack/test_fused.py.

Exit status 1 unless log-probs agree within the rounding of bf16 logits, the MTP head's gradients are equal, and the
fused run's peak is lower by at least the bf16 logits.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import results_page

sys.path.insert(0, str(results_page.ROOT))

from tests.contract import stacks

MEGATRON_CORE: Final = ("0.18.2", stacks.MEGATRON_CORE[-1])
VERL: Final = stacks.VERL[-1]
#: A vocabulary as MiMo-7B's and Qwen2's; two layers, since only what comes after them differs.
SIZES: Final = {"hidden_size": 2048, "ffn_hidden_size": 4096, "num_attention_heads": 16}
VOCABULARY, LAYERS = 151_680, 2
LENGTHS: Final = [1000, 1048] * 4  # 8,192 tokens
TEMPERATURE: Final = 0.9


def load_verl() -> None:
    """Make verl's forward functions importable without ``verl/__init__.py`` and what it imports."""
    from megatron.core.utils import unwrap_model

    root = stacks.layer("verl", VERL) / "verl"
    for name in ("", ".utils", ".utils.kernel", ".models", ".models.mcore", ".workers"):
        package = ModuleType(f"verl{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[package.__name__] = package

    @dataclass
    class CausalLMOutputForPPO:
        """The fields of verl's output that its fused processor sets, without transformers' base class."""

        loss: Any
        logits: Any
        past_key_values: Any
        hidden_states: Any
        attentions: Any
        log_probs: Any = None
        entropy: Any = None

    given = {
        "verl.utils.model": {"CausalLMOutputForPPO": CausalLMOutputForPPO},
        "verl.utils.megatron_utils": {"unwrap_model": unwrap_model},
        "verl.workers.config": {"MtpConfig": object},
    }
    for name, values in given.items():
        module = ModuleType(name)
        vars(module).update(values)
        sys.modules[name] = module


class Case:
    """One megatron-core: the same model, batch and loss, with and without the fused kernel."""

    def __init__(self) -> None:
        import torch
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}.items():
            os.environ.setdefault(name, value)
        torch.cuda.set_device(0)
        torch.distributed.init_process_group("nccl", device_id=torch.device("cuda:0"))
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(1)
        torch.manual_seed(1)
        load_verl()
        self.torch = torch
        self.model = build()
        plain = importlib.import_module("verl.models.mcore.model_forward").gptmodel_forward_model_engine
        from verl_mtp_plugin.training import request
        from verl_mtp_plugin.training.fused import output as fused_output

        self.gpt_model = self.model.module
        request.request(self.gpt_model)
        self.mark = fused_output.MARK
        self.forward = fused_output.with_fused_output(plain)
        generator = torch.Generator().manual_seed(2)
        rows = [torch.randint(0, VOCABULARY, (n,), generator=generator).cuda() for n in LENGTHS]
        self.ids = torch.nested.nested_tensor(rows, layout=torch.jagged)
        masks = [(torch.arange(n, device="cuda") >= n // 2).float() for n in LENGTHS]
        self.loss_mask = torch.nested.nested_tensor(masks, layout=torch.jagged)

    def log_probs(self, *, fused: bool) -> Any:
        """[tokens] of the batch, packed."""
        setattr(self.gpt_model, self.mark, fused)
        temperature = self.torch.nested.nested_tensor(
            [self.torch.full((n,), TEMPERATURE, device="cuda") for n in LENGTHS], layout=self.torch.jagged
        )
        arguments = {"label": self.ids.clone(), "temperature": temperature, "loss_mask": self.loss_mask}
        output = self.forward(
            self.model,
            self.ids,
            {},
            logits_processor=functools.partial(from_logits, calculate_entropy=False),
            logits_processor_args={**arguments, "response_attention_mask": None},
            mtp_enable_train=True,
        )
        return output["log_probs"].values()

    def measure(self, *, fused: bool, train: bool) -> dict[str, Any]:
        """Log-probs, gradients and what was allocated beyond the weights at the peak, in bytes."""
        torch = self.torch
        self.model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        with torch.set_grad_enabled(train):
            log_probs = self.log_probs(fused=fused)
        if train:
            weight = torch.linspace(-1, 1, log_probs.numel(), device="cuda")  # advantages of both signs
            (-(weight * log_probs).mean()).backward()
        end.record()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - base
        gradients = {n: p.grad.float().cpu() for n, p in self.model.named_parameters() if p.grad is not None}
        return {
            "log_probs": log_probs.detach().float().cpu(), "gradients": gradients, "peak": peak,
            "milliseconds": start.elapsed_time(end),
        }  # fmt: skip


def from_logits(logits: Any, label: Any, temperature: Any, *, calculate_entropy: bool) -> dict[str, Any]:
    """What verl's engine does with logits [1, t, v]."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    logits.div_(temperature.unsqueeze(-1).to(logits.dtype))
    return {"log_probs": -vocab_parallel_cross_entropy(logits, label)}


def build() -> Any:
    """A bf16 ``GPTModel`` with one MTP layer, in Megatron's Float16Module as verl wraps it."""
    import torch
    from megatron.core.models.gpt import gpt_layer_specs as specs
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.module import Float16Module
    from megatron.core.transformer.transformer_config import TransformerConfig

    class Attention(torch.nn.Module):
        """``core_attention`` for packed sequences: [t, heads, d] to [t, heads * d]."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()

        def forward(self, query: Any, key: Any, value: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
            bounds = kwargs["packed_seq_params"].cu_seqlens_q.tolist()
            pieces = []
            for a, b in zip(bounds, bounds[1:], strict=False):
                rows = (x[a:b].transpose(0, 1).unsqueeze(0) for x in (query, key, value))
                output = torch.nn.functional.scaled_dot_product_attention(*rows, is_causal=True)
                pieces.append(output.squeeze(0).transpose(0, 1).flatten(1))
            return torch.cat(pieces)

    config = TransformerConfig(
        num_layers=LAYERS, mtp_num_layers=1, mtp_loss_scaling_factor=0.3, attention_dropout=0.0, hidden_dropout=0.0,
        add_bias_linear=False, gated_linear_unit=True, activation_func=torch.nn.functional.silu, bf16=True,
        normalization="RMSNorm", params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16, persist_layer_norm=False,
        bias_activation_fusion=False, bias_dropout_fusion=False, masked_softmax_fusion=False,
        gradient_accumulation_fusion=False, **SIZES,
    )  # fmt: skip
    layer = specs.get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.self_attention.submodules.core_attention = Attention
    model = GPTModel(
        config=config, transformer_layer_spec=layer, vocab_size=VOCABULARY, max_sequence_length=4096,
        share_embeddings_and_output_weights=False, position_embedding_type="rope",
        mtp_block_spec=specs.get_gpt_mtp_block_spec(config, layer, use_transformer_engine=False),
    )  # fmt: skip
    return Float16Module(config, model.cuda()).train()


def run_one(megatron_core: str) -> dict[str, Any]:
    """All measurements in this process, whose megatron-core is this one."""
    import verl_mtp_plugin

    verl_mtp_plugin.activate()
    import torch

    case = Case()
    for fused, train in ((True, True), (True, False), (False, True), (False, False)):  # compile, warm up
        case.measure(fused=fused, train=train)
    found = {
        f"{mode}_{step}": case.measure(fused=mode == "fused", train=step == "train")
        for mode in ("fused", "plain")
        for step in ("train", "infer")
    }
    fused, plain = found["fused_train"], found["plain_train"]
    differences = {name: relative(fused["gradients"][name], plain["gradients"][name]) for name in plain["gradients"]}
    heads = {name: value for name, value in differences.items() if ".mtp." in name}
    difference = (fused["log_probs"] - plain["log_probs"]).abs()
    size = max(found["plain_infer"]["log_probs"].abs().max().item(), 1.0)
    logits = sum(LENGTHS) * VOCABULARY
    result = {
        "megatron_core": megatron_core,
        "device_name": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": importlib.import_module("triton").__version__, "verl": VERL},
        "tokens": sum(LENGTHS),
        "logits_bytes": {"bf16": 2 * logits, "bf16+fp32": 6 * logits},
        "log_prob_difference": {"mean": difference.mean().item(), "max": difference.max().item(), "size": size},
        "gradient_difference": {"mtp": max(heads.values()), "all": max(differences.values())},
        "mtp_tensors": len(heads),
        "peak_bytes": {name: value["peak"] for name, value in found.items()},
        "milliseconds": {name: value["milliseconds"] for name, value in found.items()},
    }
    peaks = result["peak_bytes"]
    result["checks"] = {
        # bf16 keeps 8 bits: a logit as large as the largest log-prob is rounded by that / 2**9, and so is its label's.
        "log_probs_agree": difference.max().item() <= 4 * size / 2**9,
        "mtp_gradients_equal": bool(heads) and max(heads.values()) <= 1e-6,
        "gradients_close": max(differences.values()) <= 3e-2,
        "less_memory_infer": peaks["plain_infer"] - peaks["fused_infer"] >= 2 * logits,
        "less_memory_train": peaks["plain_train"] - peaks["fused_train"] >= 2 * logits,
    }
    return result


def relative(found: Any, expected: Any) -> float:
    """Largest difference, relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-20))


def run_cell(megatron_core: str) -> dict[str, Any]:
    path = [str(stacks.layer("megatron-core", megatron_core)), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, __file__, "--one", megatron_core]
    done = subprocess.run(command, cwd=results_page.ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"megatron-core {megatron_core}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def render(cells: list[dict[str, Any]]) -> str:
    lines = [
        "| megatron-core | log-probs apart: mean, max | MTP gradients apart | peak, log-probs: plain, fused | "
        "peak, training: plain, fused | ms, log-probs: plain, fused | ms, training: plain, fused |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        gib = {name: f"{size / 2**30:.2f}" for name, size in cell["peak_bytes"].items()}
        apart, ms = cell["log_prob_difference"], cell["milliseconds"]
        lines.append(
            f"| {cell['megatron_core']} | {apart['mean']:.4f}, {apart['max']:.4f} | "
            f"{cell['gradient_difference']['mtp']:.1e} | {gib['plain_infer']}, {gib['fused_infer']} GiB | "
            f"{gib['plain_train']}, {gib['fused_train']} GiB | {ms['plain_infer']:.0f}, {ms['fused_infer']:.0f} | "
            f"{ms['plain_train']:.0f}, {ms['fused_train']:.0f} |"
        )
    first = cells[0]
    size = {name: f"{value / 2**30:.2f}" for name, value in first["logits_bytes"].items()}
    return f"""
## Fused log-prob kernels beside MTP

verl {first["versions"]["verl"]}'s Triton kernel and forward functions, bf16, {first["tokens"]} packed tokens, a vocabulary of {VOCABULARY}, hidden size {SIZES["hidden_size"]}, {LAYERS} layers and one MTP layer. Peaks are beyond the weights; the logits alone are {size["bf16"]} GiB in bf16 and {size["bf16+fp32"]} GiB with the fp32 copy. Times are one pass each, after one to warm up.

{chr(10).join(lines)}

{first["device_name"]}, torch {first["versions"]["torch"]}, Triton {first["versions"]["triton"]}. `python benchmarks/gpu_fused.py`.
"""  # noqa: E501


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="run, and write what was found")
    parser.add_argument("--render", type=Path, help="write docs/RESULTS.md from such a file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one)))
        return 0
    if not (options.json or options.render):
        parser.error("give --json FILE, --render FILE or both")
    if options.json:
        cells = [run_cell(version) for version in MEGATRON_CORE]
        options.json.write_text(json.dumps(cells, indent=1))
    else:
        cells = json.loads(options.render.read_text())
    if options.render:
        results_page.write("fused_cuda", {"cells": cells}, render(cells))
    print(json.dumps(cells, indent=1))
    return 0 if all(all(cell["checks"].values()) for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
