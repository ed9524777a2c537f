"""MTP in megatron-core's HybridModel (MambaModel before 0.18), asked for by verl's own functions. Prints JSON.

Attention and MLP layers only: a Mamba layer needs CUDA kernels, and is part of the trunk like any other.

``python -m tests.stack.model_classes_worker VERL MEGATRON_CORE on|off``, the last one: the plugin.
"""

from __future__ import annotations

import importlib
import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from tests.contract import process
from tests.contract.models import set_weights


def arm() -> None:
    """The patches under test, unless the plugin has armed them."""
    import verl_mtp_plugin
    from verl_mtp_plugin.patching import PatchEngine
    from verl_mtp_plugin.training import class_hooks

    if not any(record.patch_set == class_hooks.VERL_FUNCTIONS.id for record in verl_mtp_plugin.report().patches):
        PatchEngine().arm(class_hooks.PATCHES)


def build(*, depths: int = 2, tied: bool = False) -> Any:
    """A tiny model of the class that this megatron-core trains Nemotron with."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    try:
        from megatron.core.models.hybrid.hybrid_layer_specs import hybrid_stack_spec as spec
        from megatron.core.models.hybrid.hybrid_model import HybridModel as Model
    except ImportError:
        from megatron.core.models.mamba.mamba_layer_specs import mamba_stack_spec as spec
        from megatron.core.models.mamba.mamba_model import MambaModel as Model
    config = TransformerConfig(
        num_layers=4, hidden_size=32, num_attention_heads=4, ffn_hidden_size=64, mtp_num_layers=depths,
        mtp_loss_scaling_factor=0.3, attention_dropout=0.0, hidden_dropout=0.0, add_bias_linear=False,
        gated_linear_unit=True, activation_func=F.silu, normalization="RMSNorm", use_cpu_initialization=True,
        bias_activation_fusion=False, bias_dropout_fusion=False, masked_softmax_fusion=False,
        persist_layer_norm=False, gradient_accumulation_fusion=False,
    )  # fmt: skip
    pattern = "*-*-" + "/*-" * depths
    model = Model(
        config, spec, 64, 64, pattern, position_embedding_type="rope", share_embeddings_and_output_weights=tied
    )  # fmt: skip
    set_weights(model)
    return model.train()


class Run:
    """One pass, and one back from an output times zero: whatever has a gradient has it from the MTP loss."""

    def __init__(self, model: Any, batch: Any, *, labels: bool) -> None:
        calls: list[int] = []
        hook = model.mtp.register_forward_pre_hook(lambda *_: calls.append(1))
        given = {"labels": batch.labels, "loss_mask": batch.loss_mask} if labels else {}
        model.zero_grad(set_to_none=True)
        self.output = model(**batch.inputs(), **given)
        if self.output.requires_grad:
            (0.0 * self.output).sum().backward()
        hook.remove()
        self.mtp_calls = len(calls)
        self.gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        }

    def sizes(self) -> dict[str, float]:
        """The largest gradient of each parameter."""
        return {name: float(gradient.abs().max()) for name, gradient in self.gradients.items()}

    def apart(self, other: Run) -> dict[str, float]:
        """The largest difference of each parameter, relative to the other's largest gradient."""
        return {
            name: float((self.gradients[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
            for name, expected in other.gradients.items()
        }


def checks(world: Any, engine: Any, mtp_patch: Any) -> dict[str, Any]:
    """With tied weights and without, with the encoder detached and without."""
    from verl_mtp_plugin.errors import UnsupportedError
    from verl_mtp_plugin.training.request import verify

    batch = world.batch
    found: dict[str, Any] = {}
    for tied in (False, True):
        for detach in (False, True):
            model = build(tied=tied)
            upstream = Run(model, batch, labels=True)  # nobody has asked: its own MTP loss is the yardstick
            mtp = SimpleNamespace(enable=True, detach_encoder=detach)
            engine.patch_engine_mtp([model], SimpleNamespace(mtp=mtp))
            verify(model)
            asked = Run(model, batch, labels=True)
            plain = Run(model, batch, labels=False)
            with torch.no_grad():
                evaluated = Run(model, batch, labels=True)
            found[f"tied_{tied}_detach_{detach}"] = {
                "logits": list(asked.output.shape),
                "same_logits": all(torch.equal(asked.output, other.output) for other in (plain, evaluated)),
                "mtp_calls": [asked.mtp_calls, plain.mtp_calls, evaluated.mtp_calls],
                "apart": asked.apart(upstream),
                "sizes": asked.sizes(),
                "upstream_sizes": upstream.sizes(),
            }
    mtp_patch.unpatch_postprocess(model)
    found["withdrawn"] = list(Run(model, batch, labels=True).output.shape)
    try:
        verify(model)
    except UnsupportedError as error:
        found["verify_without_request"] = error.found
    return found


def through_verl(engine: Any) -> dict[str, Any]:
    """verl's own forward, packed: log-probs [t] and MTP gradients, against rows one by one."""
    forward = importlib.import_module("verl.models.mcore.model_forward").gptmodel_forward_model_engine
    model = build(depths=1)
    engine.patch_engine_mtp([model], SimpleNamespace(mtp=SimpleNamespace(enable=True, detach_encoder=True)))
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(1, 64, (length,), generator=generator) for length in (9, 14)]
    masks = [(torch.arange(len(row)) >= len(row) // 2).float() for row in rows]

    def nested(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.nested.nested_tensor(parts, layout=torch.jagged)

    def log_probs(logits: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"log_probs": logits.log_softmax(-1).gather(-1, label.unsqueeze(-1)).squeeze(-1)}

    output = forward(
        model, nested(rows), {}, logits_processor=log_probs,
        logits_processor_args={"label": nested(rows), "loss_mask": nested(masks), "response_attention_mask": None},
        mtp_enable_train=True,
    )["log_probs"]  # fmt: skip
    (0.0 * output.values()).sum().backward()
    apart = 0.0
    for row, found in zip(rows, output.unbind(), strict=True):
        size = len(row)
        future = torch.ones(1, 1, size, size, dtype=torch.bool).triu(1)
        with torch.no_grad():
            logits = model(input_ids=row[None], position_ids=torch.arange(size)[None], attention_mask=future)
        expected = logits[0].log_softmax(-1)[torch.arange(size - 1), row[1:]]
        apart = max(apart, float((found[:-1] - expected).abs().max()))
    sizes = {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in model.named_parameters()}
    return {
        "log_probs_apart": apart,
        "mtp_trained": min(size for name, size in sizes.items() if name.startswith("mtp.")),
        "others_trained": max(size for name, size in sizes.items() if not name.startswith("mtp.")),
    }


def main() -> None:
    world, _, verl_error = process.prepare(sys.argv[1], sys.argv[2], plugin=sys.argv[3] == "on", device="cpu")
    assert verl_error is None, verl_error
    process.stand_ins().install()
    from verl_mtp_plugin.testing import transformer_engine

    transformer_engine.install()
    engine = importlib.import_module("verl.utils.megatron_utils")
    mtp_patch = importlib.import_module("verl.models.mcore.mtp_patch")
    if sys.argv[3] == "on":
        arm()
        found = {**checks(world, engine, mtp_patch), "verl_forward": through_verl(engine)}
    else:
        model = build()
        engine.patch_engine_mtp([model], SimpleNamespace(mtp=SimpleNamespace(enable=True, detach_encoder=True)))
        found = {"asked": "_postprocess" in vars(model), "detached": "_get_embeddings" in vars(model.mtp.layers[0])}
    print("\n=> " + json.dumps(found))


if __name__ == "__main__":
    main()
