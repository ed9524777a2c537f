"""Rollout servers: weight sync, KV cache, speculative decoding's metrics. Light to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .states import ReplicaState


def states(manager: Any) -> dict[str, ReplicaState]:
    """The state of each replica of a ``CheckpointEngineManager``, by name, as known in this process. Asks no server."""
    from .states import STATES
    from .verl_replica import VerlReplica

    return {VerlReplica(replica).name: STATES.state(replica) for replica in manager.replicas}
