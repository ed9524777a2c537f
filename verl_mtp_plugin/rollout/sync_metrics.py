"""How a sync's metrics reach verl's tracker.

verl 0.9's V1 and one-step-off trainers take what ``update_weights`` returns; those before it, and the fully
asynchronous one, drop it. So the metrics are returned and also kept for the next line that this process logs: a trainer
that has taken them logs them itself, and they are added to the line of one that has not.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

from ..patching import Patch, Target, around
from .report import SyncReport

_lock = threading.Lock()
_pending: dict[str, float] = {}


def hand_over(report: SyncReport) -> dict[str, Any]:
    """What ``update_weights`` returns: verl's own metrics of the transfer, if it has any, and the sync's."""
    metrics = report.metrics()
    with _lock:
        _pending.clear()
        _pending.update(metrics)
    upstream = report.upstream if isinstance(report.upstream, Mapping) else {}
    return {**upstream, **metrics}


def log(original: Any, self: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
    """``Tracking.log`` with the metrics of a sync since the last line; the caller's dictionary is left as it is."""
    if _pending and isinstance(data, Mapping):
        with _lock:
            data = {**_pending, **data}
            _pending.clear()
    return original(self, data, *args, **kwargs)


PATCHES: Final = (
    Patch(
        id="rollout.sync_metrics",
        target=Target("verl.utils.tracking", "Tracking.log"),
        reason="nobody can say how long a weight sync took, what it freed and how many requests it ended: verl drops "
        "what update_weights returns before 0.9.0, and in its fully asynchronous trainer in all releases",
        upstream="no release; delete when all trainers log what update_weights returns",
        build=around(log),
    ),
)
