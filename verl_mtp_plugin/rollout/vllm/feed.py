"""vLLM's drafter and the trainer's weights: whether verl's worker hands them on, and whether they come.

In the server before vLLM starts; in the worker that sends, around verl's ``ServerAdapter.update_weights``.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, Final

from ...errors import UnsupportedError
from ...verl_fixes.probes import mentions
from ..acceptance import asks_for_mtp

#: Where verl's extension of vLLM's worker receives weights.
EXTENSION: Final = "verl.workers.rollout.vllm_rollout.utils"
_RANDOM: Final = "dummy"


async def update_weights(
    original: Callable[..., Awaitable[Any]], self: Any, weights: Any, *args: Any, **kwargs: Any
) -> Any:
    """``ServerAdapter.update_weights``, and its stream looked at.

    Raises:
        WeightSyncError: MTP is trained, and not all of it was sent; or the drafter is frozen and random.
    """
    from ..feed import feed_of, load_format

    feed = feed_of(self, *args, **kwargs)
    if feed is None:
        return await original(self, weights, *args, **kwargs)
    result = await original(self, feed.watch(weights), *args, **kwargs)
    await feed.settle(lambda: load_format(self, getattr(self, "server_handle", None)))
    return result


async def launch_server(original: Callable[..., Awaitable[Any]], server: Any, *args: Any, **kwargs: Any) -> Any:
    """``vLLMHttpServer.launch_server``, refused where its drafter would never get weights that it needs.

    Raises:
        UnsupportedError: verl's worker loads the target alone, and MTP is trained or the drafter random.
    """
    if asks_for_mtp(server.config) and not feeds_drafter():
        trained = getattr(server.config.mtp, "enable_train", False)
        if trained or load_format_of(server) == _RANDOM:
            what = "MTP is trained" if trained else f"the drafter's weights are random (load_format={_RANDOM})"
            raise UnsupportedError(
                found=f"a vLLM worker of verl's that hands weights to the target model alone, where {what}",
                expected="a worker that feeds the drafter too, as verl's does from 0.8.0 on",
                advice="Use verl >= 0.8.0 or rollout.name=sglang; or a frozen drafter, with "
                "actor_rollout_ref.model.mtp.enable_train=False and actor_rollout_ref.rollout.load_format=auto; or "
                "actor_rollout_ref.model.mtp.enable_rollout=False.",
            )
    return await original(server, *args, **kwargs)


def feeds_drafter() -> bool:
    """Whether verl's extension of vLLM's worker looks for a drafter when it receives weights."""
    extension = import_module(EXTENSION).vLLMColocateWorkerExtension
    methods = (value for value in vars(extension).values() if inspect.isfunction(value))
    return any(mentions(method, "drafter") for method in methods)


def load_format_of(server: Any) -> str | None:
    """How a server loads its drafter: vLLM's ``load_format``, or before it has started the one that it is given."""
    config = getattr(getattr(server, "engine", None), "vllm_config", None)
    own = getattr(getattr(config, "speculative_config", None), "draft_load_config", None)
    loaded = own or getattr(config, "load_config", None)
    given = (getattr(server.config, "engine_kwargs", None) or {}).get("vllm") or {}
    found = getattr(loaded, "load_format", None) or given.get("load_format") or server.config.load_format
    return None if found is None else str(getattr(found, "value", found))


async def mtp_load_format(server: Any) -> str | None:
    """The method of that name, which ``vLLMHttpServer`` does not have."""
    return load_format_of(server)
