"""What is sent to the rollout engine has every MTP tensor: planned before the first sync, and counted in each.

A tensor that is not sent leaves the rollout engine drafting with what it has: acceptance falls, or is zero. Of one that
is sent twice the last one stays, whichever that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

from ...errors import AmbiguousWeightsError, MissingWeightsError
from .agreement import everywhere, together
from .copies import check_copies, from_owners
from .source import complete
from .weight_names import chunks, has_mtp, hf_names, is_mbridge, is_mtp, listed, name_of, plan


@dataclass(frozen=True, slots=True)
class Exported:
    """What every rank exports of the MTP layers, as all ranks together know it."""

    models: tuple[ref[Any], ...]  # this rank's chunks of the model
    wanted: frozenset[str]  # Hugging Face's names
    unmapped: frozenset[str]  # Megatron's names of what is not exported

    def is_of(self, models: Sequence[Any]) -> bool:
        """Whether this is about these very chunks."""
        return [known() for known in self.models] == list(models)


#: The last answer of each bridge. Names do not change while a model lives.
_known: WeakKeyDictionary[Any, Exported] = WeakKeyDictionary()


def check_export(bridge: Any, modules: Any) -> frozenset[str]:
    """Check, right after build or later, that the bridge will export every MTP parameter. A collective, the first time.

    Args:
        bridge: mbridge's, or Megatron-Bridge's ``AutoBridge``.
        modules: the model chunks of this rank.

    Returns:
        The Hugging Face names of all of them.

    Raises:
        MissingWeightsError: it has no Hugging Face name for some.
    """
    if not has_mtp(modules):
        return frozenset()
    found = exported(bridge, modules)
    if found.unmapped:
        raise MissingWeightsError(
            found=f"MTP parameters that {name_of(bridge)} would not export: {listed(found.unmapped)}",
            expected="a Hugging Face name for each, so that the rollout engine and checkpoints get them",
            advice="Use a bridge that supports this model's MTP: `verl-mtp models` shows which do.",
        )
    return found.wanted


def exported(bridge: Any, modules: Any) -> Exported:
    """What is exported of a model with MTP layers; the source of exports is completed with it.

    Asked once for each model: then, on all ranks, a collective.
    """
    models = chunks(modules)
    known = _known.get(bridge)
    if known is None or not known.is_of(models):
        mine = together(lambda: plan(bridge, models))
        wanted, unmapped = everywhere(lambda: mine.wanted), everywhere(lambda: mine.unmapped)
        known = _known[bridge] = Exported(tuple(map(ref, models)), wanted, unmapped)
    if not is_mbridge(bridge):
        complete(bridge.hf_pretrained, known.wanted)
    return known


def watched(stream: Iterable[Any], wanted: Callable[[], Iterable[str]], bridge: str) -> Iterator[Any]:
    """The pairs of name and tensor as they come, none of them kept.

    Args:
        wanted: the names that must have come when the stream ends.
        bridge: whose stream it is, for the message.

    Raises:
        AmbiguousWeightsError: in place of a tensor whose name has come before.
        MissingWeightsError: at the end, if some did not come.
    """
    owed, seen = set(wanted()), set[str]()
    try:
        for item in stream:
            if item[0] in seen:
                raise AmbiguousWeightsError(
                    found=f"{item[0]} a second time among the weights that {bridge} exports",
                    expected="each tensor once: the rollout engine, or the folder, would keep the last one",
                    advice="Report this with the model and the bridge's version. With pipeline parallelism, "
                    "pipeline_model_parallel_size=1 may help.",
                )
            seen.add(item[0])
            owed.discard(item[0].replace(".base_layer.", "."))  # the wrapped layer of a LoRA
            held = [item]
            del item
            yield held.pop()
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()
    if owed:
        raise MissingWeightsError(
            found=f"tensors of the MTP layers that {bridge} did not export: {listed(owed)}",
            expected="all of them, or the rollout engine drafts with old weights",
            advice="Report this with the model and the bridge's version. To serve without drafts, set "
            "actor_rollout_ref.model.mtp.enable_rollout=False.",
        )


def export_weights(original: Any, bridge: Any, models: Any, *args: Any, **kwargs: Any) -> Any:
    """mbridge's ``Bridge.export_weights`` without the copies that stages have of one parameter, watched."""
    stream = original(bridge, models, *args, **kwargs)
    if not has_mtp(models):
        return stream

    def wanted() -> frozenset[str]:
        check_copies(models)
        return check_export(bridge, models)

    return watched(from_owners(bridge, stream), wanted, name_of(bridge))


def export_hf_weights(original: Any, bridge: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Megatron-Bridge's ``AutoBridge.export_hf_weights``, of a completed source, and watched."""
    if not has_mtp(model):
        return original(bridge, model, *args, **kwargs)
    check_copies(model)
    expected = check_export(bridge, model)
    tasks = kwargs.get("conversion_tasks")
    if tasks is not None:  # a caller's own choice; what get_conversion_tasks returns is complete
        chosen = [task for task in tasks if task is not None and is_mtp(task.global_param_name)]
        expected = frozenset(name for task in chosen for name in hf_names(task))
    stream = original(bridge, model, *args, **kwargs)
    return watched(stream, lambda: expected, name_of(bridge))


def get_conversion_tasks(original: Any, bridge: Any, megatron_model: Any, *args: Any, **kwargs: Any) -> Any:
    """Megatron-Bridge's ``AutoBridge.get_conversion_tasks``, of a completed source: verl >= 0.9 exports by these."""
    check_export(bridge, megatron_model)
    return original(bridge, megatron_model, *args, **kwargs)
