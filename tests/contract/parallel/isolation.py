"""What MTP must leave alone, when it must not run, what it reports, and what is refused."""

from __future__ import annotations

from typing import Any

import torch

from ..checks.registry import expect, expect_all_same, expect_same, is_mtp
from .expected import Normalization
from .layouts import PROCESSES, STANDALONE
from .registry import Cell, as_expected, check, expect_outputs, plain
from .weights import EMBEDDING, HEAD


@check()
def metric(cell: Cell) -> str:
    """The plugin's MTP losses are the means over all trained tokens of the step"""
    from megatron.core import parallel_state

    from verl_mtp_plugin.training.step import tally

    batches = cell.grid(2)
    wanted = cell.expected(batches, Normalization.GLOBAL, mtp=2).losses
    tally.clear()
    cell.trainer(mtp=2).run(batches)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    found = [row[0] for row in tally.take(2, group, cell.device)]
    if parallel_state.is_pipeline_last_stage():
        for depth, (one, two) in enumerate(zip(found, wanted, strict=True), 1):
            expect(abs(one - two) < cell.tolerance / 2 * two, f"depth {depth}: {one:.6f}, expected {two:.6f}")
    return "losses " + ", ".join(f"{value:.4f}" for value in wanted)


@check()
def head_isolated(cell: Cell) -> str:
    """With a main loss: logits and the untied head's gradient of the same layout without MTP, bit for bit"""
    batches = cell.grid(2)
    outcome, without = cell.trainer().run(batches, main=1.0), plain(cell, batches)
    expect_outputs(outcome, without)
    expect_same(outcome.gradients[HEAD], without.gradients[HEAD], "lm_head gradient")
    return "bit-equal"


def _isolated(cell: Cell, **model: Any) -> str:
    batches = cell.grid(2)
    outcome = cell.trainer(detach_encoder=True, mtp=2, **model).run(batches, main=1.0)
    without = plain(cell, batches, **model)
    expect_outputs(outcome, without)
    expect(EMBEDDING in without.gradients, "no embedding to compare")
    expect_all_same(outcome.gradients, without.gradients, "gradient of")
    trained = [name for name, value in outcome.gradients.items() if is_mtp(name) and bool(value.any())]
    expect(bool(trained), "MTP was not trained")
    return f"{len(without.gradients)} gradients bit-equal"


@check()
def detach_isolates(cell: Cell) -> str:
    """detach_encoder: everything but the MTP block as in the same layout without MTP, bit for bit"""
    return _isolated(cell)


@check()
def detach_isolates_tied(cell: Cell) -> str:
    """The same with tied weights"""
    return _isolated(cell, tied=True)


@check()
def labels_none(cell: Cell) -> str:
    """labels=None: no MTP layer runs; logits and gradients of the same layout without MTP, bit for bit"""
    batches = cell.grid(2)
    for tied in (False, True):
        outcome = cell.trainer(tied=tied).run(batches, labels=False, main=1.0)
        without = plain(cell, batches, tied=tied)
        expect(outcome.mtp_calls == 0, f"{outcome.mtp_calls} MTP layer calls")
        expect(not any(outcome.tracked), "an MTP loss was tracked")
        expect_outputs(outcome, without)
        expect_all_same(outcome.gradients, without.gradients, "gradient of")
        reached = [name for name, value in outcome.gradients.items() if is_mtp(name) and bool(value.any())]
        expect(not reached, f"{len(reached)} mtp.* gradients")
    return "untied and tied"


@check()
def no_grad(cell: Cell) -> str:
    """Without gradients, labels given or not: no MTP layer runs; logits of the same layout without MTP"""
    batches, subject, bare = cell.grid(2), cell.trainer(), cell.trainer(mtp=None)
    with torch.no_grad():
        without = bare.run(batches, labels=False)
        for train in (True, False):
            for labels in (True, False):
                subject.wrapped.train(train)
                outcome = subject.run(batches, labels=labels)
                expect(outcome.mtp_calls == 0, f"{outcome.mtp_calls} MTP layer calls")
                expect_outputs(outcome, without)
    return "train and eval mode"


@check(pipeline_only=True)
def standalone_stage(cell: Cell) -> str:
    """MTP layers on a pipeline stage of their own: trained as expected, or refused in words, at once, on every stage"""
    from verl_mtp_plugin.errors import UnsupportedError

    apart: dict[str, Any] = {"pipeline_model_parallel_layout": STANDALONE}
    error = ""
    try:
        cell.trainer(**apart)
    except (UnsupportedError, AssertionError) as refusal:  # megatron-core 0.15 refuses the layout itself
        error = str(refusal)
    answers = ["" for _ in range(PROCESSES)]
    torch.distributed.all_gather_object(answers, error)
    if not any(answers):
        return as_expected(cell, besides=apart)
    for stage, answer in enumerate(answers):
        expect(bool(answer), f"stage {stage} is not refused, and waits for one that is: {max(answers)}")
        expect("stage" in answer and "MTP layers" in answer, f"not a clear error: {answer}")
    return f"refused: {error}"
