"""One rank of a tensor-parallel pair: the chunked loss on its shards against the reference on the whole.

python -m tests.stack.loss_group_worker RANK RENDEZVOUS_FILE
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
import torch.distributed as dist

from verl_mtp_plugin.testing import cuda
from verl_mtp_plugin.training.loss import Objective, chunked_loss

from .loss_oracle import OBJECTIVES, Case, compare, random_case, reference

SIZE = 2
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def shard(tensor: torch.Tensor, rank: int) -> torch.Tensor:
    return tensor.chunk(SIZE)[rank]


def check(case: Case, rank: int, group: Any, sequence_parallel: bool) -> None:
    """Every rank has the whole loss and, of the whole loss, the gradient of the hidden states that it holds."""
    expected = reference(case)
    hidden, target = case.hidden, case.target_hidden
    if sequence_parallel:
        hidden, target = shard(hidden, rank), shard(target, rank)
    hidden = hidden.clone().requires_grad_()
    options: dict[str, Any] = {
        "objective": Objective(case.objective), "target_hidden": target, "logit_scale": case.logit_scale,
        "tensor_parallel_group": group, "sequence_parallel": sequence_parallel, "chunk_tokens": case.chunk_tokens,
    }  # fmt: skip
    loss, totals = chunked_loss(hidden, shard(case.weight, rank), case.labels, case.mask, **options)
    (gradient,) = torch.autograd.grad(loss, hidden)
    if sequence_parallel:
        whole = [torch.empty_like(gradient) for _ in range(SIZE)]
        dist.all_gather(whole, gradient)
        gradient = torch.cat(whole)
    found = compare(expected, loss.detach(), gradient, totals)
    assert max(found.values()) <= TOLERANCE[hidden.dtype], (rank, sequence_parallel, case, found)
    with torch.no_grad():
        quiet, quiet_totals = chunked_loss(hidden, shard(case.weight, rank), case.labels, case.mask, **options)
    assert torch.equal(quiet, loss)
    assert torch.equal(quiet_totals.correct, totals.correct)


def masks(b: int, s: int) -> dict[str, torch.Tensor]:
    """Also ones whose trained tokens lie in one half of the sequence, or mostly so."""
    ones, halves = torch.ones(b, s), (torch.zeros(b, s), torch.zeros(b, s))
    halves[0][:, : s // 2], halves[1][:, s // 2 :] = 1.0, 1.0
    ragged = torch.rand(b, s, generator=torch.Generator().manual_seed(1))
    ragged[:, : s // 2 - 1] = 0.0
    return {"all": ones, "none": 0 * ones, "first half": halves[0], "second half": halves[1], "ragged": ragged}


def main() -> None:
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=SIZE)
    group, count = dist.group.WORLD, 0
    for seed, (objective, chunk, sequence_parallel) in enumerate(
        itertools.product(OBJECTIVES, (None, 1, 3), (False, True))
    ):
        for (name, mask), dtype in itertools.product(masks(2, 8).items(), TOLERANCE):
            case = random_case(seed, 8, 2, 5, 14, dtype=dtype, objective=objective, chunk_tokens=chunk)
            case = case.changed(mask=mask, logit_scale=1.0 if name == "all" else 0.6)
            check(case, rank, group, sequence_parallel)
            count += 1
    for label, sequence_parallel in itertools.product((0, 6, 7, 13), (False, True)):  # at both shards' edges
        case = random_case(label, 8, 2, 5, 14, chunk_tokens=5)
        check(case.changed(labels=torch.full_like(case.labels, label)), rank, group, sequence_parallel)
    for sequence_parallel in (False, True):  # equal logits in both shards: the lowest id of all counts
        weight = torch.tensor([[0.0, 1], [2, 2], [1, 0], [2, 2], [2, 2], [0, 0]], dtype=torch.float64)
        hidden = torch.tensor([[1.0, 1], [2, 1], [0, 0], [1, 2]], dtype=torch.float64)[:, None]
        case = Case(hidden, weight, torch.tensor([[1, 3, 0, 4]]), torch.tensor([[1.0, 0.5, 0.25, 0.125]]), hidden)
        assert reference(case).correct == 1.25
        check(case, rank, group, sequence_parallel)
    alone = [dist.new_group([r]) for r in range(SIZE)][rank]  # a group of one is no group
    case = random_case(1, 6, 2, 5, 14, chunk_tokens=4)
    hidden = case.hidden.requires_grad_()
    loss, totals = chunked_loss(
        hidden, case.weight, case.labels, case.mask, tensor_parallel_group=alone, sequence_parallel=True
    )
    found = compare(reference(case), loss.detach(), torch.autograd.grad(loss, hidden)[0], totals)
    assert max(found.values()) <= TOLERANCE[torch.float64], found
    print(f"{count} cases")
    cuda.end_process()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
