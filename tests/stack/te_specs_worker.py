"""A GPT with MTP from TransformerEngine's layer specs over the stand-ins, against one from Megatron's local specs.

``python -m tests.stack.te_specs_worker`` prints the largest differences of hidden states and of gradients.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from verl_mtp_plugin.testing import cuda, transformer_engine

#: Where Megatron's local layers keep the norm that TransformerEngine's layers have inside.
FUSED_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


def build(*, te: bool) -> Any:
    from megatron.core.models.gpt import gpt_layer_specs
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=64,
        mtp_num_layers=1,
        mtp_loss_scaling_factor=0.1,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cpu_initialization=True,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
    )
    if te:
        spec: Any = gpt_layer_specs.get_gpt_decoder_block_spec(config, use_transformer_engine=True)
    else:
        spec = gpt_layer_specs.get_gpt_layer_local_spec(normalization="RMSNorm")
    return GPTModel(
        config=config,
        transformer_layer_spec=spec,
        mtp_block_spec=gpt_layer_specs.get_gpt_mtp_block_spec(config, spec, use_transformer_engine=te),
        vocab_size=64,
        max_sequence_length=32,
        position_embedding_type="rope",
    )


def te_name(local_name: str) -> str:
    for local, fused in FUSED_NORMS.items():
        if local_name.endswith(local):
            return local_name.replace(local, fused)
    return local_name


def pass_through(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states of trunk and MTP layer ``[2s, b, h]``, and all gradients by TransformerEngine's names."""
    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(2))
    caught: list[Tensor] = []
    model.mtp.register_forward_hook(lambda module, args, output: caught.append(output.detach()))
    mask = torch.triu(torch.ones(1, 1, 16, 16, dtype=torch.bool), diagonal=1)
    loss = model(
        input_ids=ids, position_ids=torch.arange(16).expand(2, -1), attention_mask=mask, labels=ids.roll(-1, 1)
    )
    loss.sum().backward()
    return caught[0], {te_name(name): parameter.grad for name, parameter in model.named_parameters()}


def main() -> None:
    cuda.install()
    from megatron.core import parallel_state

    cuda.install_megatron()
    cuda.init_process_group()
    parallel_state.initialize_model_parallel()
    transformer_engine.install()
    local, te = build(te=False), build(te=True)
    weights = {te_name(name): parameter for name, parameter in local.named_parameters()}
    names = dict(te.named_parameters())
    with torch.no_grad():
        for name, parameter in names.items():
            weights[name].normal_(std=0.2)
            parameter.copy_(weights[name])
    (wanted, wanted_grads), (found, grads) = pass_through(local), pass_through(te)
    print(
        json.dumps(
            {
                "names_differ": sorted(names.keys() ^ weights.keys()),
                "hidden": float((wanted - found).abs().max() / wanted.abs().max()),
                "gradients": max(float((grads[n] - g).abs().max() / g.abs().max()) for n, g in wanted_grads.items()),
            }
        )
    )


if __name__ == "__main__":
    main()
