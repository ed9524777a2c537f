"""The layouts, each of two processes here. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROCESSES = 2
#: All of Megatron's MTP layers on the first of two stages, the loss alone on the second.
STANDALONE = [["embedding", "decoder", "decoder", "mtp"], ["loss"]]


@dataclass(frozen=True)
class Layout:
    """How processes share a model and a batch.

    Args:
        name: in results.
        says: what it is, in words.
        tensor, context, pipeline, expert: sizes as in Megatron's ``initialize_model_parallel``.
        packed: sequences packed (thd) rather than padded (bshd).
        model: more arguments of ``models.build``.
        since: the oldest megatron-core that can do it.
        processes: how many there are.
    """

    name: str
    says: str
    tensor: int = 1
    context: int = 1
    pipeline: int = 1
    expert: int = 1
    packed: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    since: tuple[int, ...] = (0, 15)
    processes: int = PROCESSES

    @property
    def data(self) -> int:
        """Replicas of the model, each with sequences of its own. Expert parallelism goes across them."""
        return self.processes // (self.tensor * self.context * self.pipeline)

    @property
    def config(self) -> dict[str, Any]:
        """Fields of ``TransformerConfig``."""
        return {
            "tensor_model_parallel_size": self.tensor,
            "context_parallel_size": self.context,
            "pipeline_model_parallel_size": self.pipeline,
            "expert_model_parallel_size": self.expert,
        }


SEQUENCE_PARALLEL = {"sequence_parallel": True}
LAYOUTS = (
    Layout("data", "two replicas"),
    Layout("tensor", "tensor parallel", tensor=2),
    Layout("sequence", "tensor and sequence parallel", tensor=2, model=SEQUENCE_PARALLEL),
    Layout("sequence_packed", "the same, packed", tensor=2, packed=True, model=SEQUENCE_PARALLEL, since=(0, 16)),
    Layout("context", "context parallel, padded", context=2),
    Layout("context_packed", "context parallel, packed", context=2, packed=True, since=(0, 16)),
    Layout("pipeline", "pipeline parallel, MTP on the last stage", pipeline=2),
    Layout("expert", "expert parallel, with a padding mask where the model takes one", expert=2, model={"moe": True}),
)
BY_NAME = {layout.name: layout for layout in LAYOUTS}
