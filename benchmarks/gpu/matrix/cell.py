"""A layout on GPUs: how its models are built, and how MTP training is asked for on them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from tests.contract import models
from tests.contract.attention import PackedAttention
from tests.contract.faults import replaced
from tests.contract.models import Batch
from tests.contract.parallel import weights
from tests.contract.parallel.batches import Grid, Item, grid
from tests.contract.parallel.expected import Expected, Normalization
from tests.contract.parallel.registry import Cell
from tests.contract.parallel.step import Outcome, Trainer
from tests.contract.world import World

#: Largest difference from the fp64 reference with the same weights, relative to a parameter's largest gradient. bf16
#: rounds each value by up to 2**-9, some forty times on the way through three layers to a gradient and back. On a CPU,
#: where attention is not rounded inside, that comes to 3e-2 at most; this is twice as much.
TOLERANCE: Final = 6e-2
#: Heads of 64, as attention kernels want them; the rest small, for the reference's sake.
SIZES: Final[dict[str, Any]] = {
    "hidden_size": 256, "ffn_hidden_size": 512, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 64,
}  # fmt: skip
#: Weights with which each layer's output has about the size of its input.
DEVIATION: Final = 0.07
#: Multiples of eight: two context-parallel ranks need four, kernels like eight.
LENGTHS: Final = (96, 40, 152, 64)
#: Where megatron-core's local layers keep the norm that TransformerEngine's have inside.
NORMS: Final = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def local_name(name: str) -> str:
    """A parameter's name in the model of the local layer spec."""
    for fused, own in NORMS.items():
        if name.endswith(fused):
            return name.removesuffix(fused) + own
    return name


def draw(name: str, shape: Any) -> torch.Tensor:
    """A weight that bf16 can hold, so that the reference has the same."""
    return models.drawn(local_name(name), shape, DEVIATION).bfloat16().float()


def placed(batch: Batch, device: torch.device) -> Batch:
    """The batch with all its tensors, those of ``packed_seq_params`` too, on ``device``."""
    changes = {
        field.name: value.to(device)
        for field in dataclasses.fields(batch)
        if torch.is_tensor(value := getattr(batch, field.name))
    }
    packed = batch.extra.get("packed_seq_params")
    for field in dataclasses.fields(packed) if packed is not None else ():
        if torch.is_tensor(value := getattr(packed, field.name)):
            setattr(packed, field.name, value.to(device))
    return batch.replace(**changes)


class GpuTrainer(Trainer):
    """A step of a model from TransformerEngine's layer spec, on which verl's own functions have asked for training.

    ``peak_bytes`` is the most memory that was allocated until the latest step's end, since PyTorch's count was reset.
    """

    peak_bytes: int

    def __init__(self, world: World, *args: Any, **options: Any) -> None:
        self.world = world
        super().__init__(*args, **options)

    def built(self, **model: Any) -> Any:
        """In bf16, with weights from their names."""
        on_cpu = self.world.device.type == "cpu"
        options = {**SIZES, "use_cpu_initialization": on_cpu, **model}
        return models.build(
            self.world.device,
            weights=weights.setter(draw),
            transformer_engine=True,
            dtype=torch.bfloat16,
            **options,
        )

    def ask(self, *, detach_encoder: bool) -> None:
        """As verl's ``patch_engine_mtp`` does."""
        self.world.ask(self.model, detach_encoder=detach_encoder)

    def placed(self, batch: Batch) -> Batch:
        return placed(batch, self.world.device)

    def gradients(self) -> dict[str, torch.Tensor]:
        """By the names of the local layer spec, on the CPU. A collective, through the GPU: with memory of its own."""
        self.peak_bytes = int(torch.cuda.max_memory_allocated())
        return {local_name(name): value for name, value in super().gradients().items()}


@contextlib.contextmanager
def without_transformer_engine() -> Iterator[None]:
    """Models of the local layer spec without what they use of TransformerEngine where it is installed.

    That is the last norm of a block, which does not know fp64, and a function that splits a tensor.
    """
    names = ("transformer_block", "torch_norm", "attention")
    block, norm, attention = (importlib.import_module(f"megatron.core.transformer.{name}") for name in names)
    plain_norm = vars(norm)["WrappedTorchNorm"]
    with replaced(block, "LayerNormImpl", lambda _: plain_norm), replaced(attention, "SplitAlongDim", lambda _: None):
        yield


@dataclass(frozen=True)
class GpuCell(Cell):
    """A layout in use, in a :class:`World` that says where models lie and whether the plugin is on."""

    world: World

    @property
    def tolerance(self) -> float:
        return TOLERANCE

    @property
    def device(self) -> torch.device:
        return self.world.device

    def trainer(self, **options: Any) -> Trainer:
        return GpuTrainer(self.world, self.layout, **options)

    def grid(self, microbatches: int = 1) -> list[list[Item]]:
        steps = grid(self.layout, microbatches, lengths=LENGTHS)
        return [
            [dataclasses.replace(item, rows=tuple(placed(row, self.device) for row in item.rows)) for item in step]
            for step in steps
        ]

    def whole(self, **model: Any) -> Any:
        """From the local layer spec, which the reference can run in fp64."""
        return models.build(
            self.device,
            attention=PackedAttention,
            weights=partial(models.set_weights, draw=draw),
            dtype=torch.float32,
            **{**SIZES, **model},
        )

    def expected(self, batches: Grid, normalization: Normalization, **options: Any) -> Expected:
        with without_transformer_engine():
            found = super().expected(batches, normalization, **options)
        return Expected({name: value.cpu() for name, value in found.gradients.items()}, found.losses)


def twice(cell: Cell, batches: Grid) -> tuple[Outcome, Outcome]:
    """The same training step on two models that are built alike."""
    one, two = (cell.trainer().run(batches, main=1.0) for _ in range(2))
    return one, two
