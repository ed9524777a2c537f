"""Megatron's process groups: those of a layout, and those of one process that shares nothing, by turns."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .layouts import Layout

#: Well above any step here, and well below the runner's own limit, so that who waits for whom is reported.
TIMEOUT_MINUTES = 0.5


def _state() -> dict[str, Any]:
    from megatron.core import parallel_state

    kept = (types.ModuleType, types.FunctionType, type)
    return {k: v for k, v in vars(parallel_state).items() if not k.startswith("__") and not isinstance(v, kept)}


def _put(state: dict[str, Any]) -> None:
    from megatron.core import parallel_state

    vars(parallel_state).update(state)


@dataclass
class Groups:
    """The groups of the layout in use, and beside them those without any parallelism (two replicas, never reduced)."""

    none: dict[str, Any]
    alone: dict[str, Any]

    @classmethod
    def make(cls) -> Groups:
        """From a process that ``process.prepare`` has made ready. A collective."""
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
        none = _state()
        return cls(none, _initialized(none))

    def use(self, layout: Layout) -> None:
        """Switch to a layout. A collective."""
        from megatron.core import tensor_parallel

        _put(
            _initialized(
                self.none,
                tensor_model_parallel_size=layout.tensor,
                pipeline_model_parallel_size=layout.pipeline,
                context_parallel_size=layout.context,
                expert_model_parallel_size=layout.expert,
                expert_tensor_parallel_size=1 if layout.expert > 1 else None,
            )
        )
        tensor_parallel.model_parallel_cuda_manual_seed(1)

    @contextlib.contextmanager
    def single(self) -> Iterator[None]:
        """For a while as in a process that holds everything."""
        before = _state()
        _put(self.alone)
        try:
            yield
        finally:
            _put(before)


def _initialized(none: dict[str, Any], **sizes: Any) -> dict[str, Any]:
    from megatron.core import parallel_state

    _put(none)
    parallel_state.initialize_model_parallel(
        **sizes,
        create_gloo_process_groups=False,  # all are gloo here
        distributed_timeout_minutes=TIMEOUT_MINUTES,
    )
    return _state()
