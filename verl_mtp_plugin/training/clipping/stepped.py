"""What an optimizer steps, and which of it is MTP's.

Megatron's optimizers rarely step the model's own parameters: they step fp32 copies, or this rank's part of the
parameters or of such copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch

#: Where Megatron's optimizers pair model parameters with what they step instead (fp32 copies, shards).
PAIRS: Final = (
    ("float16_groups", "fp32_from_float16_groups"),
    ("model_float16_groups", "shard_fp32_from_float16_groups"),
    ("model_float16_groups", "shard_float16_groups"),
    ("model_fp32_groups", "shard_fp32_groups"),
)


def mtp_parameters(model: Any) -> list[Any]:
    """The parameters under ``model.mtp``, without those that the rest of the model, or another stage, has as well."""
    named = list(model.named_parameters(remove_duplicate=False))
    elsewhere = {id(parameter) for name, parameter in named if not name.startswith("mtp.")}
    found = {id(p): p for name, p in named if id(p) not in elsewhere and not getattr(p, "shared", False)}
    return list(found.values())


def parts(optimizer: Any) -> Iterator[Any]:
    """The optimizers that a chain consists of, or the one that is none."""
    chained = getattr(optimizer, "chained_optimizers", None)
    if chained is None:
        yield optimizer
    for part in chained or ():
        yield from parts(part)


def origins(part: Any) -> dict[int, int]:
    """From the id of what an optimizer steps to the id of the model's parameter, where the two differ."""
    found = {}
    for models, mains in PAIRS:
        for model_group, main_group in zip(getattr(part, models, ()), getattr(part, mains, ())):
            found.update({id(main): id(model) for model, main in zip(model_group, main_group) if main is not None})
    return found


def sort(optimizer: Any, models: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """What the optimizer steps: parameters of MTP, all others, and those that nobody knows the origin of."""
    wanted = {id(parameter) for model in models for parameter in mtp_parameters(model)}
    mtp: list[Any] = []
    policy: list[Any] = []
    unknown: list[Any] = []
    for part in parts(optimizer):
        traced = origins(part)
        for parameter in part.get_parameters():
            known = id(parameter) in traced or isinstance(parameter, torch.nn.Parameter)
            if not known or getattr(parameter, "__fsdp_param__", False):
                unknown.append(parameter)
            else:
                (mtp if traced.get(id(parameter), id(parameter)) in wanted else policy).append(parameter)
    return mtp, policy, unknown
