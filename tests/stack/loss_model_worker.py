"""The MTP loss in a real GPTModel, in fp64, against the contract's reference: random lengths, masks and settings.

PYTHONPATH=<megatron-core layer> python -m tests.stack.loss_model_worker MEGATRON_CORE_VERSION EXAMPLES
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from .loss_oracle import OBJECTIVES

TOLERANCE = 1e-6  # relative to a parameter's largest gradient; sums of fractional masks are fp32


def main() -> None:
    version, examples = sys.argv[1], int(sys.argv[2])
    with contextlib.redirect_stdout(sys.stderr):
        from tests.contract.process import prepare

        world, _, _ = prepare("none", version, plugin=True, device="cpu")
        count, worst = explore(world, examples)
    print(f"{count} examples, worst {worst:.1e}")


def explore(world: Any, examples: int) -> tuple[int, float]:
    """How many examples passed, and the largest difference of all."""
    seen: list[tuple[int, str, float]] = []

    def equal(
        depth: int, rows: int, length: int, seed: int, trained: float, objective: str, chunk: int | None, **kind: bool
    ) -> None:
        from tests.contract.models import random_batch

        draw = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed))
        mask = torch.where(draw < trained, draw if kind.pop("fractions") else 1.0, 0.0)
        batch = random_batch(world.device, rows, length, seed).replace(loss_mask=mask)
        detach = kind.pop("detach")
        expected = gradients(world.build(mtp=depth, **kind).double(), batch, objective, detach)
        choose(objective, chunk)
        model = world.asked(mtp=depth, detach_encoder=detach, **kind).double()
        found = world.train(model, batch).gradients
        differences = {name: relative(found[name], wanted) for name, wanted in expected.items()}
        seen.append((depth, objective, max(differences.values())))
        wrong = {name: value for name, value in differences.items() if not value <= TOLERANCE}
        assert not wrong, wrong

    run = settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    run(
        given(
            depth=st.integers(1, 3), rows=st.integers(1, 3), length=st.integers(5, 24), seed=st.integers(0, 999),
            trained=st.sampled_from([0.0, 0.2, 0.6, 1.0]), objective=st.sampled_from(OBJECTIVES),
            chunk=st.sampled_from([None, 1, 7]), fractions=st.booleans(), detach=st.booleans(), tied=st.booleans(),
            calculate_per_token_loss=st.booleans(),
        )(equal)
    )()  # fmt: skip
    assert {depth for depth, _, _ in seen} == {1, 2, 3}
    assert {objective for _, objective, _ in seen} == set(OBJECTIVES)
    return len(seen), max(difference for _, _, difference in seen)


def choose(objective: str, chunk: int | None) -> None:
    """The plugin's options as ``VERL_MTP_PLUGIN_LOSS`` and ``_LOSS_CHUNK_TOKENS`` would set them."""
    from verl_mtp_plugin.runtime import _runtime
    from verl_mtp_plugin.settings import Settings

    _runtime.settings = Settings(loss=objective, loss_chunk_tokens=chunk)


def gradients(model: Any, batch: Any, objective: str, detach: bool) -> dict[str, torch.Tensor]:
    """Of every parameter, by autograd over full logits; ``model`` is one that nobody has asked for MTP."""
    from tests.contract.reference import reference

    if objective == "cross_entropy":
        return reference(model, batch, detach_encoder=detach).gradients
    total, margin = soft_loss(model, batch, objective, detach)
    assume(margin > 1e-9)  # |q - p| has no derivative at 0
    named = dict(model.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found)}


def soft_loss(model: Any, batch: Any, objective: str, detach: bool) -> tuple[torch.Tensor, float]:
    """The scaled loss of all depths, and how near log q and log p come to each other.

    The policy at position t + d and the MTP layer of depth d at position t predict the same token, t + d + 1.
    """
    from tests.contract.reference import head_weight, roll, run_mtp, run_trunk

    trunk, call = run_trunk(model, batch)
    weight, mask, config = head_weight(model), batch.loss_mask.double(), model.config
    log_p = (trunk.detach() @ weight.t()).log_softmax(-1)  # [s, b, v]
    total, margin = torch.zeros((), dtype=torch.float64), 1.0
    for depth, states in enumerate(run_mtp(model, batch, trunk, call, detach), start=1):
        mask = roll(mask)
        log_q = (states @ weight.t()).log_softmax(-1)[:-depth]
        target, trained = log_p[depth:], mask.t()[:-depth]
        if objective == "soft_cross_entropy":
            losses = -(target.exp() * log_q).sum(-1)
        else:
            losses = (log_q.exp() - target.exp()).abs().sum(-1) / 2
            margin = min([margin, *(log_q - target).detach().abs()[trained != 0].flatten().tolist()])
        total = total + (trained * losses).sum() / mask.sum().clamp(min=1)
    scale = config.mtp_loss_scaling_factor / config.mtp_num_layers
    if config.calculate_per_token_loss:
        scale = scale * batch.loss_mask.double().sum()
    return total * scale, margin


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest expected value, or as it is where zeros are expected."""
    largest, difference = float(expected.abs().max()), float((found - expected).abs().max())
    return difference / largest if largest else difference


if __name__ == "__main__":
    main()
