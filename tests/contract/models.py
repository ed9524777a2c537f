"""Tiny ``GPTModel`` objects of the real megatron-core, with weights that depend on their names alone."""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .attention import PackedAttention

Draw = Callable[[str, Sequence[int]], torch.Tensor]
HIDDEN, LAYERS, HEADS, VOCAB, SEQUENCE, ROWS = 32, 2, 4, 64, 16, 2


@dataclasses.dataclass(frozen=True)
class Batch:
    """``input_ids``, ``position_ids``, ``labels``, ``loss_mask`` are [b, s]; ``attention_mask`` is [1, 1, s, s]."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None  # None for packed sequences
    labels: torch.Tensor
    loss_mask: torch.Tensor
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # padding_mask, packed_seq_params

    def inputs(self) -> dict[str, Any]:
        """The arguments of ``GPTModel.forward`` but for labels and mask."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
            **self.extra,
        }

    def replace(self, **changes: Any) -> Batch:
        return dataclasses.replace(self, **changes)


def random_batch(device: torch.device, rows: int = ROWS, length: int = SEQUENCE, seed: int = 3) -> Batch:
    """Random tokens; the second half of each row is trained, as a response after its prompt is."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (rows, length), generator=generator)
    mask = torch.zeros(rows, length)
    mask[:, length // 2 : -1] = 1.0
    labels = ids.roll(-1, dims=1)
    labels[:, -1] = 0
    return Batch(
        input_ids=ids.to(device),
        position_ids=torch.arange(length).expand(rows, -1).contiguous().to(device),
        attention_mask=torch.ones(1, 1, length, length, dtype=torch.bool).triu(1).to(device),
        labels=labels.to(device),
        loss_mask=mask.to(device),
    )


def drawn(name: str, shape: Sequence[int], deviation: float = 0.2) -> torch.Tensor:
    """A random weight that depends on its name alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(tuple(shape), generator=generator)
    return deviation * values if values.dim() > 1 else 1 + 0.1 * values


def set_weights(model: torch.nn.Module, draw: Draw = drawn) -> None:
    """Weights drawn from their names: models with and without MTP agree on what they share."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw(name, parameter.shape))


def build(
    device: torch.device,
    *,
    mtp: int | None = 1,
    tied: bool = False,
    moe: bool = False,
    packed: bool = False,
    attention: type | None = None,
    stage: tuple[bool, bool] = (True, True),
    weights: Callable[[Any], None] = set_weights,
    transformer_engine: bool = False,
    dtype: torch.dtype | None = None,
    **config: Any,
) -> Any:
    """A ``GPTModel`` in train mode.

    Args:
        device: where it lies.
        mtp: number of MTP depths, None for a model without MTP.
        tied: share the embedding with the head.
        moe: four experts with an auxiliary loss, whose gradient shows whether a padding mask arrived.
        packed: attention that understands packed sequences.
        attention: takes the place of the local spec's attention, ``packed`` or not.
        stage: whether this pipeline stage embeds, and whether it computes logits.
        weights: sets them; by default from the names alone, whole tensors on every rank.
        transformer_engine: from TransformerEngine's layer spec rather than the local one.
        dtype: of the weights; by default bf16 on CUDA, fp32 on the CPU.
        config: other fields of ``TransformerConfig``, or other values than here.
    """
    from megatron.core.models.gpt import gpt_layer_specs as specs
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    experts = 4 if moe else None
    if moe:
        config = {
            "num_moe_experts": experts, "moe_router_topk": 2, "moe_ffn_hidden_size": HIDDEN, "moe_grouped_gemm": False,
            "moe_token_dispatcher_type": "alltoall", "moe_router_load_balancing_type": "aux_loss",
            "moe_aux_loss_coeff": 0.1, **config,
        }  # fmt: skip
    fields: dict[str, Any] = {
        "num_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": HEADS, "ffn_hidden_size": 2 * HIDDEN,
        "mtp_num_layers": mtp, "mtp_loss_scaling_factor": 0.3, "attention_dropout": 0.0, "hidden_dropout": 0.0,
        "add_bias_linear": False, "gated_linear_unit": True, "activation_func": F.silu, "normalization": "RMSNorm",
        "use_cpu_initialization": True, "params_dtype": dtype, "bf16": dtype is torch.bfloat16, "pipeline_dtype": dtype,
        "bias_activation_fusion": False, "bias_dropout_fusion": False, "masked_softmax_fusion": False,
        "persist_layer_norm": False, "gradient_accumulation_fusion": False,
    }  # fmt: skip
    transformer = TransformerConfig(**{**fields, **config})
    spec = specs.get_gpt_layer_local_spec
    if transformer_engine:
        spec = specs.get_gpt_layer_with_transformer_engine_spec
    layer = call_with(
        spec, num_experts=experts, moe_grouped_gemm=False, normalization="RMSNorm",
        enable_hyper_connection=config.get("enable_hyper_connections", False),
    )  # fmt: skip
    if attention or packed:
        layer.submodules.self_attention.submodules.core_attention = attention or PackedAttention
    block = specs.get_gpt_mtp_block_spec(transformer, layer, use_transformer_engine=transformer_engine) if mtp else None
    model = GPTModel(
        config=transformer, transformer_layer_spec=layer, vocab_size=VOCAB, max_sequence_length=4 * SEQUENCE,
        share_embeddings_and_output_weights=tied, position_embedding_type="rope", mtp_block_spec=block,
        pre_process=stage[0], post_process=stage[1],
    )  # fmt: skip
    weights(model)
    return model.to(device=device, dtype=dtype).train()


def call_with(function: Callable[..., Any], **arguments: Any) -> Any:
    """Call ``function`` with those of ``arguments`` that it takes; signatures differ between releases."""
    accepted = inspect.signature(function).parameters
    return function(**{name: value for name, value in arguments.items() if name in accepted})
