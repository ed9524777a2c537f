"""Around verl's ``ServerAdapter.update_weights``: SGLang's session, the drafter's route before, its weights after.

``ServerAdapter`` runs in the worker that sends the weights; the leader of each engine's ranks has the HTTP client. As
data: light to import, since it is armed at ``import verl``.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ...patching import Patch, Target, around
from .session import WeightUpdateSession

ADAPTER: Final = "verl.workers.rollout.sglang_rollout.sglang_rollout"
#: Where an adapter keeps what it knows of its drafter.
_DRAFTER: Final = "_verl_mtp_drafter"
#: The form of the weights, an argument of verl >= 0.9: full tensors, or else changes that cannot be compared.
_FULL: Final = "named_tensors"


async def update_weights(
    original: Callable[..., Awaitable[Any]], self: Any, weights: Any, *args: Any, **kwargs: Any
) -> Any:
    """verl's update, within a session where SGLang has them, and refused where a model would not get its weights.

    Raises:
        WeightSyncError: the drafter or the target would be left out; the trainer sends no MTP, or not all of it; the
            session cannot be opened or ended; or the drafter does not hold what was sent (setting ``check_drafter``).
    """
    from ... import runtime
    from ...view import View
    from ..feed import feed_of

    feed = feed_of(self, *args, **kwargs)
    if feed is not None:
        weights = feed.watch(weights)
    engine = await _engine(self)
    if engine is None:
        result = await original(self, weights, *args, **kwargs)
        await _settle(feed, self)
        return result
    check = runtime.settings().checks_drafter
    drafter = await _drafter(self, engine, must_answer=check)
    compare = drafter is not None and drafter.answers and check and _wire_format(*args, **kwargs) == _FULL
    session = WeightUpdateSession(engine, _name(self))
    self._engine = View(engine, update_weights_from_tensor=session.update)
    try:
        result = await original(self, drafter.watch(weights) if compare else weights, *args, **kwargs)
    except BaseException:
        await session.abandon()
        raise
    finally:
        self._engine = engine
    await session.end()
    fed = await _settle(feed, self, drafter.layers if drafter is not None else 1)
    if compare and fed and session.updates:
        await drafter.verify()
    return result


async def _settle(feed: Any, adapter: Any, layers: int = 1) -> bool:
    """Whether the sync fed the drafter."""
    from ..feed import load_format

    return feed is not None and await feed.settle(
        lambda: load_format(adapter, getattr(adapter, "server_actor", None)), layers
    )


async def _engine(adapter: Any) -> Any:
    """The HTTP client of this worker's SGLang server; None on ranks that have none."""
    init = adapter._init_server_adapter
    code: Any = inspect.unwrap(init).__code__
    looks = "get_local_rank" in code.co_names  # not in verl's git before ea042c2e4: its callers do
    if not looks and adapter.device_mesh["infer_tp"].get_local_rank() != 0:
        return None
    await init()
    return adapter._engine


async def _drafter(adapter: Any, engine: Any, *, must_answer: bool) -> Any:
    """What is known of the engine's drafter; None where the rollout does not speculate with MTP."""
    mtp = getattr(adapter.config, "mtp", None)
    if mtp is None or not (mtp.enable and mtp.enable_rollout):
        return None
    known = vars(adapter).get(_DRAFTER)
    if known is None or known.engine is not engine:
        from .drafter import Drafter

        known = Drafter(engine, _name(adapter), adapter.model_config.hf_config)
        await known.describe(must_answer=must_answer)
        vars(adapter)[_DRAFTER] = known
    return known


def _wire_format(global_steps: Any = None, wire_format: str = _FULL, **others: Any) -> str:
    return wire_format


def _name(adapter: Any) -> str:
    return f"replica {getattr(adapter, 'replica_rank', '?')}"


PATCHES: Final[tuple[Patch, ...]] = (
    Patch(
        id="rollout.sglang.adapter",
        target=Target(ADAPTER, "ServerAdapter.update_weights"),
        reason="SGLang >= 0.5.21 refuses every weight of a sync with HTTP status 400; and a drafter that SGLang leaves "
        "out, or that the trainer does not send, keeps its old weights and nobody is told",
        upstream="no verl opens SGLang's weight-update session yet; delete the session when it does",
        build=around(update_weights),
        absent_ok=True,
    ),
)
