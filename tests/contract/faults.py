"""Deliberate faults: each must be noticed by the checks that are there for it.

    PYTHONPATH=<verl layer>:<megatron-core layer> python -m tests.contract.faults --verl 0.9.1 --megatron-core 0.18.2

Runs with the plugin active and prints, as JSON, which checks failed under each fault. The faults are put into
megatron-core's own functions, so they do not depend on how the plugin is written.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .cell import run_checks
from .process import prepare
from .stacks import Cell

#: What each fault must trip, at least.
MUST_TRIP = {
    "none": (),
    "labels_not_rolled": ("train_mtp_gradients", "train_metric", "train_depths"),
    "roll_crosses_sequences": ("packed_train",),
    "loss_one_percent_larger": ("train_mtp_gradients", "train_tied", "train_per_token_loss", "detach_mtp_gradients"),
    "loss_dropped": ("train_mtp_gradients", "train_trunk_gradients"),
    "metric_one_percent_larger": ("train_metric", "train_mask_partial"),
    "padding_mask_dropped": ("moe_train",),
    "mtp_always_runs": ("labels_none_train", "labels_none_eval_no_grad", "labels_none_not_asked"),
    "head_trained": ("train_lm_head_isolated", "detach_isolates", "train_tied"),
    "embedding_trained": ("detach_isolates", "detach_isolates_tied"),
    "logits_off_by_one_bit": ("labels_none_train", "train_logits", "labels_in_eval_no_grad"),
}


@contextlib.contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """``owner.name`` replaced by what ``make`` makes of it."""
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def fault(name: str) -> contextlib.AbstractContextManager[None]:
    """The context in which the named fault is in place."""
    import torch
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer import multi_token_prediction as mtp

    scaler, helper = mtp.MTPLossAutoScaler, mtp.MTPLossLoggingHelper
    layer = mtp.MultiTokenPredictionLayer
    save = next(n for n in ("save_metrics_to_tracker", "save_loss_to_tracker") if hasattr(helper, n))

    def labels_not_rolled(roll: Any) -> Any:
        return lambda tensor, *args, **kwargs: (tensor, tensor.sum())

    def packed_dropped(roll: Any) -> Any:
        return lambda *args, packed_seq_params=None, **kwargs: roll(*args, **kwargs)

    def scaled_metric(saved: Any) -> Any:
        return staticmethod(lambda loss, *args, **kwargs: saved(1.01 * loss, *args, **kwargs))

    def without_padding(forward: Any) -> Any:
        @functools.wraps(forward)  # whether a release takes the mask is read from the signature
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            return forward(self, *args, **{**kwargs, "padding_mask": None})

        return run

    def also_runs_mtp(forward: Any) -> Any:
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            for one in getattr(getattr(self, "mtp", None), "layers", ()):
                for hook in one._forward_pre_hooks.values():
                    hook(one, ())  # as a call of the layer would
            return forward(self, *args, **kwargs)

        return run

    def leaks(weight_of: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def make(forward: Any) -> Any:
            def run(self: Any, *args: Any, **kwargs: Any) -> Any:
                output = forward(self, *args, **kwargs)
                if kwargs.get("labels") is None or not torch.is_grad_enabled():
                    return output
                return scaler.apply(output, 1e-3 * weight_of(self).sum())

            return run

        return make

    def off_by_one_bit(forward: Any) -> Any:
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = forward(self, *args, **kwargs)
            if getattr(self, "mtp", None) is None or output.dim() != 3:
                return output
            return output + torch.zeros_like(output).index_fill_(2, torch.tensor([5]), 1e-6)

        return run

    def head(model: Any) -> Any:
        return (
            model.shared_embedding_or_output_weight()
            if model.share_embeddings_and_output_weights
            else (model.output_layer.weight)
        )

    faults: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
        "labels_not_rolled": (mtp, "roll_tensor", labels_not_rolled),
        "roll_crosses_sequences": (mtp, "roll_tensor", packed_dropped),
        "loss_one_percent_larger": (scaler, "apply", lambda apply: lambda output, loss: apply(output, 1.01 * loss)),
        "loss_dropped": (scaler, "apply", lambda apply: lambda output, loss: output),
        "metric_one_percent_larger": (helper, save, scaled_metric),
        "padding_mask_dropped": (layer, "forward", without_padding),
        "mtp_always_runs": (GPTModel, "forward", also_runs_mtp),
        "head_trained": (GPTModel, "forward", leaks(head)),
        "embedding_trained": (GPTModel, "forward", leaks(lambda model: model.embedding.word_embeddings.weight)),
        "logits_off_by_one_bit": (GPTModel, "forward", off_by_one_bit),
    }
    return contextlib.nullcontext() if name == "none" else replaced(*faults[name])


def main() -> int:
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    pair = Cell(options["--verl"], options["--megatron-core"])
    with contextlib.redirect_stdout(sys.stderr):
        world, _, _ = prepare(pair.verl, pair.megatron_core, plugin=True, device="cpu")
        found = {}
        for name in MUST_TRIP:
            with fault(name):
                outcomes = run_checks(world)
            found[name] = [check["name"] for check in outcomes if not check["ok"] and check["kind"] == "required"]
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
