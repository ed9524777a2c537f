"""The descriptor that reads verl's instance patches as requests (no torch needed for that)."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest

from verl_mtp_plugin.training.request import VERL_PATCHES, RequestSlot, wants_training


def original(self: Any) -> str:
    return "original"


def ours(self: Any) -> str:
    return "ours"


def verls(self: Any) -> str:
    return "verl's copied body"


verls.__module__ = VERL_PATCHES


def third_partys(self: Any) -> str:
    return "third party"


@pytest.fixture
def model() -> Any:
    class Model:
        _postprocess = RequestSlot("_postprocess", original, ours)

    return Model()


def bind(function: Callable[[Any], str], model: Any) -> MethodType:
    return MethodType(function, model)


def test_ours_runs_without_any_request(model: Any) -> None:
    assert model._postprocess() == "ours"
    assert not wants_training(model)


def test_verls_patch_is_a_request_and_does_not_run(model: Any) -> None:
    for _ in range(2):  # patched twice, as verl's own code may
        model._postprocess_backup = model._postprocess
        model._postprocess = bind(verls, model)
        assert model._postprocess() == "ours"
        assert wants_training(model)
    model._postprocess = model._postprocess_backup  # verl's unpatch
    assert model._postprocess() == "ours"
    assert not wants_training(model)


def test_a_request_made_before_the_slot_is_read(model: Any) -> None:
    vars(model)["_postprocess"] = bind(verls, model)
    vars(model)["_postprocess_backup"] = bind(original, model)
    assert model._postprocess() == "ours"
    model._postprocess = model._postprocess_backup
    assert model._postprocess() == "ours"  # the original that verl had saved is ours now


def test_a_third_partys_instance_patch_stays_in_force(model: Any) -> None:
    model._postprocess = bind(third_partys, model)
    assert model._postprocess() == "third party"
    del model._postprocess
    assert model._postprocess() == "ours"
    with pytest.raises(AttributeError):
        del model._postprocess
