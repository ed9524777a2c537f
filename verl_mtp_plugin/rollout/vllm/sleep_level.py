"""Sleep of a hybrid server that drafts: level 1, since nobody brings back a drafter's weights after level 2.

verl 0.7.1 and 0.8.0 choose level 2 unless LoRA is used; 0.9 has the choice of this module.
"""

from __future__ import annotations

import copy
from typing import Any

from .. import acceptance

#: Weights to the CPU and back.
KEEPS_WEIGHTS = 1


class _LightSleeper:
    """An engine whose sleep keeps the weights, as verl's ``sleep`` sees it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def sleep(self, level: int = KEEPS_WEIGHTS, **kwargs: Any) -> Any:
        return await self._engine.sleep(level=min(level, KEEPS_WEIGHTS), **kwargs)

    async def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """verl 0.7.1 sleeps through this one, to every worker."""
        options = kwargs.get("kwargs")
        if method == "sleep" and options and "level" in options:
            kwargs["kwargs"] = {**options, "level": min(options["level"], KEEPS_WEIGHTS)}
        return await self._engine.collective_rpc(method, *args, **kwargs)


async def sleep(original: Any, server: Any, *args: Any, **kwargs: Any) -> Any:
    """``vLLMHttpServer.sleep``."""
    if server.node_rank != 0 or not acceptance.asks_for_mtp(server.config):
        return await original(server, *args, **kwargs)
    view = copy.copy(server)  # sleep reads the server and changes nothing on it
    view.engine = _LightSleeper(server.engine)
    return await original(view, *args, **kwargs)
