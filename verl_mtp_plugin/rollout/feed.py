"""Whether a weight sync feeds the drafter: its tensors' names looked for in the trainer's stream, in every mode.

Names alone, on every rank that receives them, in every sync of whole weights; no tensor is read and none is kept. What
an engine trains it must send: a drafter that nobody feeds keeps its start's weights while the policy moves away from
it, and acceptance falls with nobody told. A frozen drafter (``enable_train=False``) may do without, if its weights came
from the checkpoint and not from ``load_format=dummy``.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final

from ..errors import WeightSyncError
from ..models.lookup import family_of, mtp_names_of
from .acceptance import asks_for_mtp

logger = logging.getLogger("verl_mtp_plugin")

#: ``wire_format`` of verl >= 0.9: whole tensors by name, and changes, of which the first sync sends whole tensors too.
WHOLE: Final = "named_tensors"
DELTA: Final = "delta_flush"
#: In a delta's message, the JSON that names its tensors; ``dense`` is the encoding of whole ones.
_SPEC: Final = "__delta_spec__"
_DENSE: Final = "dense"
#: Drafters without weights.
_WITHOUT_WEIGHTS: Final = frozenset({"NGRAM"})
_RANDOM: Final = "dummy"
#: The checkpoint engine of trainers that share GPUs with their rollout.
_SAME_GPU: Final = "naive"
#: Where an adapter keeps that its frozen drafter was announced.
_SAID: Final = "_verl_mtp_frozen_said"
#: What MTP tensors are called by families that nobody has described.
_GENERIC: Final = re.compile(r"(?:^|[._])(?:mtp|nextn)(?:[._s\d]|$)|(?:^|\.)(?:eh_proj|enorm|hnorm)\.", re.IGNORECASE)
_LAYER: Final = re.compile(r"(?:^|\.)layers\.(\d+)\.")

LoadFormat = Callable[[], Awaitable[str | None]]


class Feed:
    """What one sync sends to one rank, as far as the drafter is concerned.

    Args:
        adapter: verl's ``ServerAdapter``, which has the configs of rollout and model.
        delta: the stream is of messages (``delta_flush``) and not of (name, tensor) pairs.
    """

    def __init__(self, adapter: Any, *, delta: bool = False) -> None:
        self._adapter = adapter
        self._delta = delta
        self._mtp = adapter.config.mtp
        self._config = adapter.model_config.hf_config
        self._names = mtp_names_of(self._config)
        self._seen: set[str] = set()  # of the MTP tensors
        self._whole = False  # at least one whole tensor has come

    # -- during the sync ------------------------------------------------------------------------------------------

    def watch(self, weights: Any) -> Any:
        """The same stream, sync or async, of which the names are noted and nothing is kept."""
        return self._watch_async(weights) if hasattr(weights, "__aiter__") else self._watch(weights)

    def _watch(self, weights: Any) -> Iterator[Any]:
        for item in weights:
            self._note(item)
            held = [item]
            del item
            yield held.pop()

    async def _watch_async(self, weights: Any) -> AsyncIterator[Any]:
        async for item in weights:
            self._note(item)
            held = [item]
            del item
            yield held.pop()

    def _note(self, item: Any) -> None:
        for name in _delta_names(item) if self._delta else (item[0],):
            self._whole = True
            if self._is_mtp(name):
                self._seen.add(name.replace(".base_layer.", "."))

    def _is_mtp(self, name: str) -> bool:
        if self._names:
            return name in self._names
        if _GENERIC.search(name):
            return True
        trunk = getattr(getattr(self._config, "text_config", None) or self._config, "num_hidden_layers", None)
        layer = _LAYER.search(name)
        return bool(trunk and layer and int(layer[1]) >= int(trunk))

    # -- after the sync -------------------------------------------------------------------------------------------

    async def settle(self, ask: LoadFormat, steps: int = 1) -> bool:
        """Judge what has come. Nothing is said of a sync in which this rank received no whole tensor.

        Args:
            ask: what the server has loaded its drafter with; None if nobody can say.
            steps: the MTP layers that the drafter runs, where each has weights of its own.

        Returns:
            Whether it must hold what was sent; not where it is frozen, and its weights are the checkpoint's.

        Raises:
            WeightSyncError: MTP is trained, and not all of it was sent; or the drafter is frozen and random.
        """
        if not self._whole:
            return False
        if self._seen:
            self._complete(steps)
            return True
        if getattr(self._mtp, "enable_train", False):
            raise self._error(
                "MTP is trained (mtp.enable_train=True), and the trainer sent none of its tensors "
                f"({self._looked_for()})"
            )
        return await self._frozen(ask)

    def _complete(self, steps: int) -> None:
        layers = {layer for name in self._seen if (layer := self._names.layer(name)) is not None} if self._names else ()
        missing = [layer for layer in range(steps) if layers and layer not in layers]
        if missing:
            raise self._error(
                f"the drafter runs {steps} MTP layers, and the trainer sent none of layer "
                f"{', '.join(map(str, missing))} ({self._looked_for()})"
            )
        absent = sorted(self._owed(layers) - self._seen)
        if absent:
            listed = ", ".join(absent[:4]) + (f", ... ({len(absent)} in all)" if len(absent) > 4 else "")
            raise self._error(f"the trainer sent {len(self._seen)} MTP tensors of the checkpoint, and not {listed}")

    def _owed(self, layers: Collection[int]) -> set[str]:
        """The weights that the checkpoint has for the layers that came; none if its names are others than the stream's.

        Copies of the trunk's tensors, scales and buffers are left out: an export need not have them.
        """
        family = family_of(self._config)
        present = self._names.among(_checkpoint(getattr(self._adapter.model_config, "local_path", None)))
        if family is None or not self._seen <= present:
            return set()
        return {
            name
            for name in present
            if name.endswith(".weight") and not name.endswith(family.copies or ("\0",))
            if (layer := self._names.layer(name)) is None or not layers or layer in layers
        }

    async def _frozen(self, ask: LoadFormat) -> bool:
        loaded = await ask()
        if loaded is None:  # then strict mode compares
            return True
        if loaded == _RANDOM:
            raise self._error(
                f"the drafter's weights are random: the server has load_format={_RANDOM}, and the trainer sent none of "
                f"the MTP tensors ({self._looked_for()})",
                advice="Set actor_rollout_ref.rollout.load_format=auto, and the checkpoint's own MTP head drafts as it "
                "is; or train with model_engine=megatron, which sends it; or set "
                "actor_rollout_ref.model.mtp.enable_rollout=False.",
            )
        if not vars(self._adapter).get(_SAID):
            vars(self._adapter)[_SAID] = True
            logger.info(
                "%s: the drafter is frozen: mtp.enable_train=False, the trainer sends no MTP tensor, and the "
                "checkpoint's own (load_format=%s) draft as they are",
                _name(self._adapter),
                loaded,
            )
        return False

    def _looked_for(self) -> str:
        if self._names:
            return f"names that begin with {self._names}"
        return "names with mtp or nextn, or of layers behind the trunk's: nobody has described this model's"

    def _error(self, found: str, advice: str = "") -> WeightSyncError:
        return WeightSyncError(
            found=f"{_name(self._adapter)}: {found}",
            expected="a drafter with the trainer's MTP weights of this sync",
            advice=advice
            or "Train with an engine that exports MTP: model_engine=megatron and a bridge that does (verl-mtp models). "
            "Or set actor_rollout_ref.model.mtp.enable_train=False or mtp.enable_rollout=False. A model whose MTP "
            "tensors have other names is described by the hook verl_mtp_models.",
        )


def feed_of(adapter: Any, global_steps: Any = None, wire_format: str = WHOLE, **kwargs: Any) -> Feed | None:
    """What watches a sync, with the arguments of ``ServerAdapter.update_weights`` after the weights.

    None where the rollout does not draft with MTP, and where an adapter (LoRA) alone is sent: the weights beneath it
    have come before, in a sync of their own or from the checkpoint.
    """
    if not asks_for_mtp(adapter.config) or (kwargs.get("peft_config") and kwargs.get("base_sync_done")):
        return None
    algorithm = str(getattr(adapter.config.mtp, "speculative_algorithm", None)).upper()
    if algorithm in _WITHOUT_WEIGHTS and getattr(adapter.config, "name", "sglang") == "sglang":
        return None
    if wire_format not in (WHOLE, DELTA):
        return None
    return Feed(adapter, delta=wire_format == DELTA)


async def load_format(adapter: Any, server: Any) -> str | None:
    """What a server has loaded its drafter with; None if nobody can say, as on ranks that have no server.

    Args:
        server: the handle of its Ray actor. One that runs without the plugin cannot be asked; then it is what its
            config says, but for ``dummy`` with weights over the network, which verl before 0.9.1 turns to ``auto``.
    """
    if server is None:
        return None
    method = getattr(server, "mtp_load_format", None)
    if method is not None:
        answer: str | None = await method.remote()
        return answer
    config = adapter.config
    engine_kwargs = (getattr(config, "engine_kwargs", None) or {}).get(getattr(config, "name", None)) or {}
    given: str | None = engine_kwargs.get("load_format") or getattr(config, "load_format", None)
    if given == _RANDOM and getattr(config.checkpoint_engine, "backend", _SAME_GPU) != _SAME_GPU:
        return None
    return given


def _delta_names(item: Any) -> list[str]:
    """The whole tensors in one message of verl's ``delta_sharded`` engine; of changes none."""
    named, _ = item
    spec = next((tensor for name, tensor in named if name == _SPEC), None)
    if spec is None:
        return []
    content = json.loads(bytes(spec.cpu().tolist()))
    if content.get("encoding") != _DENSE:
        return []
    return [str(parameter["name"]) for parameter in content["params"]]


def _checkpoint(folder: Any) -> frozenset[str]:
    """The names of the checkpoint's tensors; none if they cannot be read."""
    if not folder:
        return frozenset()
    from ..bridges.weights.folder import INDEX, tensor_names

    try:
        index = Path(folder) / INDEX
        if index.exists():
            return frozenset(json.loads(index.read_text())["weight_map"])
        return tensor_names(Path(folder))
    except Exception as error:  # another kind of checkpoint
        logger.debug("the names of %s are not read: %s", folder, error)
        return frozenset()


def _name(adapter: Any) -> str:
    return f"replica {getattr(adapter, 'replica_rank', '?')}"
