"""Teaches model.py's model the task with verl's own SFT trainer: Megatron engine, MTP trained along.

    python -m benchmarks.gpu.pretrain --model MODEL --data DATA --out TRAINED [--steps 800] [--gpus 1] [OVERRIDE...]

TRAINED becomes a Hugging Face folder like MODEL. Overrides go to verl as they are. Takes minutes on one H200.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path


def overrides(args: argparse.Namespace) -> list[str]:
    """verl's config, as on a command line."""
    transformer = "engine.override_transformer_config"
    return [
        "engine=megatron",
        "optim=megatron",
        f"model.path={args.model}",
        "model.trust_remote_code=True",
        "model.use_remove_padding=True",
        "model.mtp.enable=True",
        "model.mtp.enable_train=True",
        "model.mtp.detach_encoder=False",
        "model.mtp.mtp_loss_scaling_factor=0.3",
        f"engine.vanilla_mbridge={args.mbridge}",
        f"engine.tensor_model_parallel_size={args.tensor_parallel}",
        f"{transformer}.attention_backend=auto",  # flash-attn need not be installed
        f"+{transformer}.gradient_accumulation_fusion=False",  # nor apex
        # Without it, megatron-core turns each packed sequence by itself, and a step is mostly launches of kernels.
        f"+{transformer}.apply_rope_fusion=True",
        f"optim.lr={args.lr}",
        f"optim.min_lr={args.lr / 10:g}",
        "optim.lr_decay_style=cosine",
        f"optim.lr_warmup_steps={min(50, args.steps // 10)}",
        "optim.betas=[0.9,0.95]",
        "optim.weight_decay=0.05",
        f"data.train_files={args.data / 'sft.parquet'}",
        f"data.val_files={args.data / 'sft_val.parquet'}",
        f"data.train_batch_size={args.batch}",
        "data.max_length=512",
        "data.use_dynamic_bsz=True",
        f"data.max_token_len_per_gpu={args.tokens_per_gpu}",
        f"data.num_workers={min(8, os.cpu_count() or 1)}",
        "checkpoint.save_contents=[hf_model]",
        f"trainer.total_training_steps={args.steps}",
        "trainer.total_epochs=100",
        f"trainer.n_gpus_per_node={args.gpus}",
        "trainer.logger=[console,file]",
        "trainer.resume_mode=disable",
        "trainer.project_name=benchmarks",
        "trainer.experiment_name=pretrain",
        f"trainer.default_local_dir={args.out}.checkpoints",
        f"hydra.run.dir={args.out}.checkpoints",
        *args.overrides,
    ]


def launch(args: argparse.Namespace) -> list[str]:
    ranks = ["--standalone", "--nnodes=1", f"--nproc-per-node={args.gpus}"]
    return [sys.executable, "-m", "torch.distributed.run", *ranks, "-m", "verl.trainer.sft_trainer", *overrides(args)]


def collect(model: Path, checkpoints: Path, out: Path) -> None:
    """The trained weights beside the model's other files; a checkpoint lacks some of them, or has rewritten them."""
    trained = max(checkpoints.rglob("huggingface/*.safetensors"), key=lambda path: path.stat().st_mtime).parent
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in model.iterdir():
        if file.is_file() and ".safetensors" not in file.name:
            shutil.copy(file, out)
    for file in trained.glob("*.safetensors*"):
        shutil.copy(file, out)
    before, after = tensors(model), tensors(out)
    if before != after:
        raise SystemExit(f"the checkpoint has other tensors than the model: {sorted(before ^ after)}")


def tensors(folder: Path) -> set[str]:
    """Names in all safetensors files, read from their headers."""
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        names |= set(header) - {"__metadata__"}
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--tokens-per-gpu", type=int, default=65536, help="in one forward pass")
    parser.add_argument("--mbridge", action="store_true", help="mbridge in place of Megatron-Bridge")
    parser.add_argument("--dry-run", action="store_true", help="print the command")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    for name in ("model", "data", "out"):
        setattr(args, name, getattr(args, name).resolve())
    command = launch(args)
    if args.dry_run:
        print(" \\\n  ".join(command))
        return
    checkpoints = Path(f"{args.out}.checkpoints")
    checkpoints.mkdir(parents=True, exist_ok=True)
    settings = {"VERL_FILE_LOGGER_PATH": str(checkpoints / "metrics.jsonl"), "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    began = time.monotonic()
    subprocess.run(command, env=os.environ | settings, check=True)
    collect(args.model, checkpoints, args.out)
    print(f"{args.out}: trained in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
