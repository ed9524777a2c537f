"""The MTP loss with a sharded vocabulary on two GPUs over NCCL, against full fp32 logits on one.

    python benchmarks/gpu_tensor_parallel.py --json FILE      # on a machine with two GPUs; needs torch alone
    python benchmarks/gpu_tensor_parallel.py --render FILE    # write docs/RESULTS.md from that

Exit status 1 if a difference is larger than its limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import results_page
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

sys.path.insert(0, str(results_page.ROOT))

from verl_mtp_plugin.training.loss import chunked_loss

SIZE: Final = 2
HIDDEN, VOCABULARY, LENGTH = 4096, 151_680, 2048
LIMITS: Final = {"float32": 5e-5, "bfloat16": 2e-2}  # gradient, relative to its largest value


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [s, 2, h], weight [v, h], labels and mask [2, s]; trained tokens mostly in the second half."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(LENGTH // 2, 2, HIDDEN, generator=generator).to("cuda", dtype)
    weight = (torch.randn(VOCABULARY, HIDDEN, generator=generator) * 0.03).to("cuda", dtype)
    labels = torch.randint(VOCABULARY, (2, LENGTH // 2), generator=generator).cuda()
    mask = (torch.arange(LENGTH // 2).expand(2, -1) >= LENGTH // 4 - 37).float().cuda()
    return hidden, weight, labels, mask


def reference(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss and its gradient [s, 2, h] from full logits, in fp32 from the rounded inputs."""
    hidden, weight, labels, mask = inputs(dtype)
    states = hidden.float().requires_grad_()
    losses = F.cross_entropy((states @ weight.float().t()).permute(1, 2, 0), labels, reduction="none")
    loss = (losses * mask).sum()
    return loss.detach(), torch.autograd.grad(loss, states)[0]


def sharded(dtype: torch.dtype, sequence_parallel: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The same through :func:`chunked_loss`, from this rank's shards."""
    rank = dist.get_rank()
    hidden, weight, labels, mask = inputs(dtype)
    if sequence_parallel:
        hidden = hidden.chunk(SIZE)[rank].clone()
    hidden.requires_grad_()
    loss, _ = chunked_loss(
        hidden, weight.chunk(SIZE)[rank].clone(), labels, mask,
        tensor_parallel_group=dist.group.WORLD, sequence_parallel=sequence_parallel, chunk_tokens=320,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, hidden)
    if sequence_parallel:
        parts = [torch.empty_like(gradient) for _ in range(SIZE)]
        dist.all_gather(parts, gradient.contiguous())
        gradient = torch.cat(parts)
    return loss.detach(), gradient


def rank_main(rank: int, rendezvous: str, out: str) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{rendezvous}", rank=rank, world_size=SIZE)
    torch.backends.cuda.matmul.allow_tf32 = False
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        expected_loss, expected = reference(dtype)
        for sequence_parallel in (False, True):
            loss, gradient = sharded(dtype, sequence_parallel)
            found.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "sequence_parallel": sequence_parallel,
                    "loss": float((loss - expected_loss).abs() / expected_loss),
                    "gradient": float((gradient.float() - expected).abs().max() / expected.abs().max()),
                    "untrained_is_zero": not bool(gradient[: LENGTH // 4 - 37].any()),
                }
            )
    if rank == 0:
        document = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "found": found}
        Path(out).write_text(json.dumps(document, indent=1) + "\n")
    dist.destroy_process_group()


def misses(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in document["found"] if row["gradient"] > LIMITS[row["dtype"]] or not row["untrained_is_zero"]]


def section(document: dict[str, Any]) -> str:
    lines = [
        "## MTP loss with a sharded vocabulary, on two GPUs",
        f"{document['gpu']} x {SIZE}, NCCL, torch {document['torch']}; {LENGTH} tokens, hidden {HIDDEN}, vocabulary "
        f"{VOCABULARY:,}, half of the tokens trained and nearly all of them in one shard of the sequence. Relative "
        "difference from full fp32 logits on one GPU. `python benchmarks/gpu_tensor_parallel.py --json FILE`.",
        "",
        "| precision | sequence parallel | loss | gradient, of its largest value | limit |",
        "|---|---|---|---|---|",
    ]
    for row in document["found"]:
        parallel = "yes" if row["sequence_parallel"] else "no"
        lines.append(
            f"| {row['dtype']} | {parallel} | {row['loss']:.1e} | {row['gradient']:.1e} | {LIMITS[row['dtype']]:.0e} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="run, and write what was found")
    parser.add_argument("--render", type=Path, help="write docs/RESULTS.md from such a file")
    options = parser.parse_args()
    if options.render:
        document = json.loads(options.render.read_text())
        results_page.write("tensor_parallel_cuda", document, section(document))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, args=(str(Path(folder, "rendezvous")), str(options.json)), nprocs=SIZE)
    document = json.loads(options.json.read_text())
    print(json.dumps(document, indent=1))
    return 1 if misses(document) else 0


if __name__ == "__main__":
    sys.exit(main())
