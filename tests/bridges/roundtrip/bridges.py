"""The two bridges, used as verl uses them: build, load, export. Nothing of verl is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verl_mtp_plugin.testing.verl_engine import TRANSFORMER_CONFIG

from .cells import MBRIDGE, Case, Stack


class VanillaBridge:
    """mbridge."""

    def __init__(self, folder: Path, case: Case) -> None:
        from mbridge import AutoBridge
        from transformers import AutoConfig

        self.bridge = AutoBridge.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
        self.bridge.set_extra_args(**TRANSFORMER_CONFIG)
        self.config = self.bridge.config

    def supported(self) -> bool | None:
        from verl_mtp_plugin.bridges.mbridge import probe

        return probe(self.bridge, 1).supported

    def build(self) -> list[Any]:
        models: list[Any] = self.bridge.get_model(bf16=True)
        return models

    def load(self, models: list[Any], folder: Path) -> None:
        self.bridge.load_weights(models, str(folder))

    def export(self, models: list[Any]) -> Iterator[tuple[str, Tensor]]:
        yield from self.bridge.export_weights(models)


class MegatronBridge:
    """Megatron-Bridge."""

    def __init__(self, folder: Path, case: Case) -> None:
        from megatron.bridge import AutoBridge
        from megatron.core.transformer.enums import AttnBackend

        self.bridge = AutoBridge.from_hf_pretrained(str(folder), trust_remote_code=True)
        self.provider = self.bridge.to_megatron_provider(load_weights=False)
        overrides = {
            "tensor_model_parallel_size": case.tensor_parallel,
            "pipeline_model_parallel_size": 1,
            "expert_model_parallel_size": 1,
            "expert_tensor_parallel_size": case.tensor_parallel,
            "virtual_pipeline_model_parallel_size": None,
            "context_parallel_size": 1,
            "sequence_parallel": case.tensor_parallel > 1,
            "overlap_p2p_comm": False,
            "batch_p2p_comm": False,
            "variable_seq_lengths": True,
            "attention_backend": AttnBackend.flash,
            "moe_token_dispatcher_type": "alltoall",
            "moe_router_load_balancing_type": "none",
            **TRANSFORMER_CONFIG,
        }
        if "padded" in case.options:
            overrides["should_pad_vocab"] = True
        if "share" in case.options:
            overrides["share_embeddings_and_output_weights"] = True
        self.config = self.provider
        self._finalize(overrides)

    def _finalize(self, overrides: dict[str, Any]) -> None:
        if hasattr(self.provider, "apply_overrides_and_finalize"):  # from 0.5 on
            self.provider.apply_overrides_and_finalize(dtype=torch.bfloat16, overrides=overrides)
            return
        for name, value in {"params_dtype": torch.bfloat16, "fp16": False, "bf16": True, **overrides}.items():
            setattr(self.provider, name, value)
        self.provider.finalize()

    def supported(self) -> bool | None:
        from verl_mtp_plugin.bridges.megatron_bridge import probe

        return probe(self.bridge, self.provider, 1).supported

    def build(self) -> list[Any]:
        models: list[Any] = self.provider.provide_distributed_model(
            wrap_with_ddp=False, ddp_config=None, fp16=False, bf16=True
        )
        return models

    def load(self, models: list[Any], folder: Path) -> None:
        self.bridge.load_hf_weights(models, str(folder), allowed_mismatched_params=[])

    def export(self, models: list[Any]) -> Iterator[tuple[str, Tensor]]:
        yield from self.bridge.export_hf_weights(models, conversion_tasks=self.bridge.get_conversion_tasks(models))


@dataclass(frozen=True)
class Converted:
    """A checkpoint that has been through Megatron."""

    bridge: VanillaBridge | MegatronBridge
    wrappers: list[Any]
    unloaded: list[str]  # what loading has not written to

    @property
    def model(self) -> Any:
        """The GPTModel of this rank."""
        (wrapper,) = self.wrappers
        return getattr(wrapper, "module", wrapper)

    def export(self) -> dict[str, Tensor]:
        """Every tensor by its Hugging Face name, whole, on every rank. A collective."""
        return {name: tensor.detach().clone() for name, tensor in self.bridge.export(self.wrappers)}


def bridge_for(stack: Stack, case: Case, folder: Path) -> VanillaBridge | MegatronBridge:
    """The stack's bridge for a model folder. Raises what the bridge raises."""
    return (VanillaBridge if stack.bridge == MBRIDGE else MegatronBridge)(folder, case)


def through(bridge: VanillaBridge | MegatronBridge, folder: Path) -> Converted:
    """Build the model and load the checkpoint. A collective. Raises what the bridge raises."""
    converted = Converted(bridge, bridge.build(), [])
    for tensor in _tensors(converted.model).values():
        tensor.fill_(float("nan"))
    bridge.load(converted.wrappers, folder)
    converted.unloaded.extend(name for name, tensor in _tensors(converted.model).items() if tensor.isnan().any())
    return converted


def _tensors(model: Any) -> dict[str, Tensor]:
    """Parameters and what else a checkpoint of the model holds, by Megatron's name."""
    state = model.state_dict()
    return {name: value.data for name, value in state.items() if isinstance(value, Tensor) and "_extra" not in name}
