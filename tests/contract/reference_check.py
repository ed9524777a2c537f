"""Is the yardstick straight? Compares the reference with things that share no code with it, and prints the differences.

    PYTHONPATH=<verl layer>:<megatron-core layer> python -m tests.contract.reference_check \\
        --verl 0.9.1 --megatron-core 0.18.2

- ``hidden_states``: with megatron-core's own, unpatched MTP block (two depths), relative.
- ``loss_by_hand``: with a cross entropy summed token by token in Python from those hidden states, relative.
- ``finite_differences``: the gradient along a random direction with (f(x + e) - f(x - e)) / 2e in fp64, relative.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from typing import Any

from .process import prepare


def main() -> int:
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    with contextlib.redirect_stdout(sys.stderr):
        world, _, _ = prepare(options["--verl"], options["--megatron-core"], plugin=False, device="cpu")
        found = {**block_and_loss(world), **derivative(world)}
    print(json.dumps(found))
    return 0


def block_and_loss(world: Any) -> dict[str, float]:
    """megatron-core's block, and the loss of its hidden states by hand."""
    import torch

    from . import reference

    model, batch = world.build(mtp=2), world.batch
    hidden, call = reference.run_trunk(model, batch)
    upstream = model.mtp(
        input_ids=batch.input_ids, position_ids=batch.position_ids, hidden_states=hidden,
        attention_mask=batch.attention_mask, rotary_pos_emb=call["rotary_pos_emb"], embedding=model.embedding,
    )  # fmt: skip
    depths = torch.chunk(upstream, 3, dim=0)[1:]
    ours = reference.run_mtp(model, batch, hidden, call, detach_encoder=False)
    differences = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, depths, strict=True)]

    model = model.double()
    _, means = reference.mtp_loss(model, [batch], detach_encoder=False)
    hidden, call = reference.run_trunk(model, batch)
    depths_64 = reference.run_mtp(model, batch, hidden, call, detach_encoder=False)
    by_hand = [loss_by_hand(model, batch, states, depth + 1) for depth, states in enumerate(depths_64)]
    return {
        "hidden_states": max(differences),
        "loss_by_hand": max(abs(a - b) / b for a, b in zip(means, by_hand, strict=True)),
    }


def loss_by_hand(model: Any, batch: Any, states: Any, depth: int) -> float:
    """Mean over the trained tokens: position t of depth d predicts what the labels hold at t + d."""
    weight, total, count = model.output_layer.weight.tolist(), 0.0, 0
    rows, length = batch.labels.shape
    for row in range(rows):
        for position in range(length - depth):
            if not batch.loss_mask[row, position + depth]:
                continue
            state = states[position, row].tolist()
            logits = [sum(a * b for a, b in zip(state, column, strict=True)) for column in weight]
            label = int(batch.labels[row, position + depth])
            total += math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
            count += 1
    return total / count


def derivative(world: Any, step: float = 1e-5) -> dict[str, float]:
    """Along one random direction in all parameters but the head, which the loss must treat as a constant."""
    import torch

    from . import reference

    model = world.build(mtp=2).double()
    gradients = reference.reference(model, world.batch).gradients
    generator = torch.Generator().manual_seed(5)
    moved = [(name, p) for name, p in model.named_parameters() if not name.startswith("output_layer.")]
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for _, p in moved]
    expected = sum(float((gradients[name] * d).sum()) for (name, _), d in zip(moved, directions, strict=True))

    def loss_at(distance: float) -> float:
        with torch.no_grad():
            for (_, parameter), direction in zip(moved, directions, strict=True):
                parameter.add_(direction, alpha=distance)
            value = float(reference.mtp_loss(model, [world.batch], detach_encoder=False)[0])
            for (_, parameter), direction in zip(moved, directions, strict=True):
                parameter.sub_(direction, alpha=distance)
        return value

    found = (loss_at(step) - loss_at(-step)) / (2 * step)
    return {"finite_differences": abs(found - expected) / abs(expected), "directional_derivative": abs(expected)}


if __name__ == "__main__":
    sys.exit(main())
