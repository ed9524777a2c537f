"""Which Hugging Face tensors a model's MTP parameters are made of, as its bridge maps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...models.family import MBRIDGE, MEGATRON_BRIDGE
from ..support import label

#: What Megatron calls the block of MTP layers in every model class, as a part of a dotted name.
_BLOCK: Final = "mtp"
#: Names that a message lists before it counts them.
_LISTED: Final = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """The tensors that a bridge loads MTP parameters from and exports them to."""

    #: By Megatron's name. Empty where the bridge makes the names up only while it converts.
    names: Mapping[str, tuple[str, ...]]
    unmapped: tuple[str, ...]  # Megatron's names of what the bridge would neither load nor export

    @property
    def wanted(self) -> frozenset[str]:
        """Every Hugging Face name."""
        return frozenset(name for names in self.names.values() for name in names)

    def absent(self, present: Iterable[str]) -> frozenset[str]:
        """The Hugging Face names that ``present`` lacks."""
        return self.wanted.difference(present)


def is_mtp(name: str) -> bool:
    """Whether a parameter by this dotted name, wrapped or not, belongs to an MTP layer."""
    return _BLOCK in name.split(".")


def chunks(models: Any) -> list[Any]:
    """The model chunks of this rank, which callers pass as a list or, being one, by itself."""
    return list(models) if isinstance(models, Iterable) else [models]


def has_mtp(models: Any) -> bool:
    """Whether the model has MTP layers on this pipeline stage or on another: the same answer on every rank."""
    modules = (module for chunk in chunks(models) for module in chunk.modules())
    return any(getattr(getattr(module, "config", None), "mtp_num_layers", None) for module in modules)


def is_mbridge(bridge: Any) -> bool:
    """Whether a bridge is mbridge's, and not Megatron-Bridge's ``AutoBridge``."""
    return hasattr(bridge, "_weight_name_mapping_mcore_to_hf")


def name_of(bridge: Any) -> str:
    """The bridge and its version, for messages."""
    return label(MBRIDGE if is_mbridge(bridge) else MEGATRON_BRIDGE)


def plan(bridge: Any, models: Any) -> Plan:
    """What a bridge, either of them, makes of the MTP parameters. A collective, as the parts below say."""
    if is_mbridge(bridge):
        return plan_mbridge(bridge, models)
    return plan_megatron_bridge(bridge._model_bridge, bridge.hf_pretrained, models)


def plan_mbridge(bridge: Any, models: Any) -> Plan:
    """mbridge's plan, for the parameters of this rank."""
    names: dict[str, tuple[str, ...]] = {}
    unmapped: list[str] = []
    for model in chunks(models):
        for name in filter(is_mtp, bridge._weight_name_mapping_mcore_local_to_global(model).values()):
            try:
                names[name] = tuple(bridge._weight_name_mapping_mcore_to_hf(name))
            except Exception:  # each model's class refuses in its own way, some by a failed assertion
                unmapped.append(name)
    return Plan(names, tuple(unmapped))


def plan_megatron_bridge(bridge: Any, pretrained: Any, models: Any) -> Plan:
    """Megatron-Bridge's plan, for the parameters of all pipeline stages: a collective among them.

    Args:
        bridge: a ``MegatronModelBridge``, the bridge of one architecture.
        pretrained: the Hugging Face checkpoint; some bridges choose their names by its.
    """
    from megatron.core.utils import unwrap_model

    unwrapped = unwrap_model(chunks(models))
    tasks = bridge.build_conversion_tasks(pretrained, unwrapped)
    known = {task.global_param_name: hf_names(task) for task in tasks if task is not None}
    every = bridge._megatron_global_param_names_all_pp_ranks(unwrapped)
    return Plan(
        {name: names for name, names in known.items() if is_mtp(name)},
        tuple(name for name in every if is_mtp(name) and name not in known),
    )


def hf_names(task: Any) -> tuple[str, ...]:
    """The Hugging Face names of a Megatron-Bridge conversion task.

    None where the mapping's are not those of the tensors, or where a hook decides what is exported.
    """
    mapping = task.mapping
    if mapping.allow_hf_name_mismatch or getattr(task, "export_hook", None) is not None:
        return ()
    return (mapping.hf_param,) if isinstance(mapping.hf_param, str) else tuple(mapping.hf_param.values())


def listed(names: Iterable[str]) -> str:
    """Some of the names, and how many there are, for messages."""
    ordered = sorted(names)
    some = ", ".join(ordered[:_LISTED])
    return some if len(ordered) <= _LISTED else f"{some}, ... ({len(ordered)} in all)"
