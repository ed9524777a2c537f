"""verl's real Megatron engine with fused log-prob kernels asked for, and with MTP. Prints JSON.

Only the kernel itself is stood in for, by the plain torch computation that it fuses: it is Triton on CUDA.

``python -m tests.stack.fused_worker FOLDER CASE``, CASE one of CASES.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "quickstart"))

import engine
import model as tiny
import torch
from data import Problems

#: Fused kernels asked for, and MTP trained.
CASES = {
    "plain": (False, True),
    "fused": (True, True),
    "plain_untrained": (False, False),
    "fused_untrained": (True, False),
}


def torch_linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, temperature: float, reduction: str, group: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropy, [tokens] each, as verl's kernel returns them."""
    assert isinstance(temperature, float)
    assert (reduction, group.size()) == ("none", 1)
    rows = (hidden.view(-1, hidden.shape[-1]) @ weight.T).float() / temperature
    log_probs = rows.log_softmax(dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    return log_probs.gather(1, labels.view(-1, 1)).squeeze(1), entropy


def digest(value: Any) -> Any:
    if torch.is_tensor(value):
        return [list(value.shape), hashlib.sha256(value.detach().float().numpy().tobytes()).hexdigest()]
    return None if value is None else type(value).__name__


class Witness:
    """What reaches the ``GPTModel``, its head and the kernel."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, Any]] = []
        self.head_calls = self.kernel_calls = 0

    def watch(self, gpt_model: Any) -> None:
        gpt_model.register_forward_pre_hook(self._see_inputs, with_kwargs=True)
        gpt_model.output_layer.register_forward_pre_hook(self._see_head)

    def _see_inputs(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        names = ("input_ids", "position_ids", "labels", "loss_mask", "packed_seq_params")
        self.inputs.append({name: digest(kwargs.get(name)) for name in names})

    def _see_head(self, *_: Any) -> None:
        self.head_calls += 1

    def kernel(self, *args: Any) -> Any:
        self.kernel_calls += 1
        return torch_linear_cross_entropy(*args)

    def take(self) -> dict[str, Any]:
        found = {"inputs": self.inputs, "head_calls": self.head_calls, "kernel_calls": self.kernel_calls}
        self.inputs, self.head_calls, self.kernel_calls = [], 0, 0
        return found


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "fused" in record.getMessage():
            self.lines.append((record.levelname, record.getMessage()))


def arm() -> None:
    """The patches under test, unless the plugin has armed them."""
    import verl_mtp_plugin
    from verl_mtp_plugin.patching import PatchEngine
    from verl_mtp_plugin.training.fused import hooks as fused_hooks

    if not any(record.patch_set == fused_hooks.FUSED.id for record in verl_mtp_plugin.report().patches):
        PatchEngine().arm(fused_hooks.PATCHES)


@contextmanager
def temperatures(values: list[float]) -> Iterator[None]:
    """Within it each batch has a temperature per sample."""
    module: Any = engine
    original = module.verl_batch

    def verl_batch(*args: Any) -> Any:
        batch = original(*args)
        batch["temperature"] = torch.tensor(values)
        return batch

    module.verl_batch = verl_batch
    yield
    module.verl_batch = original


def main() -> None:
    folder, (fused, train_mtp) = Path(sys.argv[1]), CASES[sys.argv[2]]
    lines = Lines()
    logging.getLogger("verl_mtp_plugin").addHandler(lines)
    engine.prepare(plugin=True)
    arm()
    from verl.models.mcore import model_forward_fused
    from verl.workers import config

    witness = Witness()
    model_forward_fused.linear_cross_entropy = witness.kernel
    config.McoreEngineConfig = functools.partial(
        config.McoreEngineConfig, use_fused_kernels=fused, max_token_len_per_gpu=4096
    )
    tiny.register()
    trained = engine.Engine(tiny.make(folder / "mimo", seed=0), train_mtp=train_mtp, steps=3)
    gpt_model = model_forward_fused.unwrap_model(trained._engine.module[0])
    witness.watch(gpt_model)
    problems = Problems(seed=1)
    batches = [problems.take(8) for _ in range(3)]
    log_probs = [row.tolist() for row in trained.log_probs(batches[0])]
    found: dict[str, Any] = {"log_probs": log_probs, "infer": witness.take()}
    for name, values in {"uniform": [0.5] * 8, "per_sample": [0.5, 1.0] * 4}.items():
        with temperatures(values):
            rows = [row.tolist() for row in trained.log_probs(batches[0])]
        found[name] = {"log_probs": rows, **witness.take()}
    before = {name: tensor.float() for name, tensor in trained.export().items()}
    steps = [trained.train(batch) for batch in batches]
    found["train"] = witness.take()
    found["steps"] = [[step.loss, step.mtp_loss, step.grad_norm] for step in steps]
    change = {name: tensor.float() - before[name] for name, tensor in trained.export().items()}
    found["change"] = {name: float(delta.norm()) for name, delta in change.items()}
    found["vocabulary"] = gpt_model.vocab_size
    found["lines"] = lines.lines
    print("=> " + json.dumps(found))


if __name__ == "__main__":
    main()
