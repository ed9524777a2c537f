"""Acceptance in the trainer's process: the metrics of a step out of its samples' counts."""

from __future__ import annotations

from inspect import signature
from typing import Any

from . import acceptance


def compute_spec_decode_metrics(original: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """verl's function (>= 0.8.0), asked about one sample that is the sum of all.

    On its own it averages the samples' ratios, with 0 for those that verified nothing, and fails on one that carries
    no numbers.
    """
    bound = signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    *columns, keep = list(bound.arguments.values())[:4]
    if any(column is None for column in columns):
        return original(*args, **kwargs)
    counts = acceptance.total(columns, keep)
    if counts.verify <= 0:
        return {}
    return original([counts.proposed], [counts.accepted], [counts.verify])


def compute_data_metrics(original: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """verl's function, with acceptance added where the batch carries it."""
    result = original(*args, **kwargs)
    batch = signature(original).bind(*args, **kwargs).arguments["batch"]
    columns = [batch.non_tensor_batch.get(name) for name in acceptance.FIELDS]
    if all(column is not None for column in columns):
        result.update(acceptance.metrics(acceptance.total(columns)))
    return result


def plain_list(values: list[Any]) -> list[Any]:
    """``LinkedList.tolist``: what ``tensordict["name"]`` gives for objects, without the tie to the TensorDict."""
    return list(values)
