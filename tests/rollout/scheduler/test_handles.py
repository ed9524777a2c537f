"""Each handle of a message is opened once, and its tensor is gone before the cache is flushed and the ranks meet.

A handle of shared memory on the CPU can be opened once, as one of CUDA's may be: without the patch the second model
fails here, where on a GPU it runs out of memory or hangs (sgl-project/sglang#17870).
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from types import ModuleType

import pytest

from verl_mtp_plugin.environment import Environment
from verl_mtp_plugin.patching import Decision
from verl_mtp_plugin.rollout.sglang import handles

from .releases import SGLANG
from .test_routes import BOTH, ROUTES, of

#: Elements of the two tensors of the message.
ONCE = [2, 4]


@pytest.mark.parametrize("release", SGLANG)
def test_without_the_patch_the_second_model_opens_anew(release: str) -> None:
    for name, route in ROUTES[release].items():
        outcome = of(release)["bare"]["update"][name]
        if route == BOTH and outcome["draft"]:
            assert outcome["error"].startswith("EOFError"), name
            assert outcome["opened"] == ONCE, name  # the first model's


@pytest.mark.parametrize("release", SGLANG)
def test_with_the_patch_all_models_read_what_was_opened_once(release: str) -> None:
    for name, outcome in of(release)["patched"]["update"].items():
        assert outcome["opened"] == ONCE, name
        assert outcome["alive_at_flush"] == [0], name


@dataclass
class Message:
    """What the patch sees of ``LocalSerializedTensor``."""

    values: list[str]


class Tensor:
    """Something that can be gone."""


def opened(message: Message, rank: int) -> Tensor:
    message.values.append(f"opened for {rank}")
    return Tensor()


def test_the_last_reader_takes_the_tensor_along() -> None:
    message = Message([])
    with handles.read_by(3):
        readers = [handles.get(opened, message, 0) for _ in range(3)]
        assert message.values == ["opened for 0"]
        assert readers[0] is readers[1] is readers[2]
        gone = weakref.ref(readers[0])
        del readers
        gc.collect()
        assert gone() is None


def test_ranks_are_apart() -> None:
    message = Message([])
    with handles.read_by(2):
        assert handles.get(opened, message, 0) is not handles.get(opened, message, 1)
    assert message.values == ["opened for 0", "opened for 1"]


def test_without_a_number_the_tensor_lives_as_long_as_its_message() -> None:
    message = Message([])
    gone = weakref.ref(handles.get(opened, message, 0))
    assert handles.get(opened, message, 0) is gone()
    del message
    gc.collect()
    assert gone() is None


def test_an_update_that_fails_leaves_no_number_behind() -> None:
    with pytest.raises(RuntimeError), handles.read_by(1):
        raise RuntimeError
    message = Message([])
    assert handles.get(opened, message, 0) is handles.get(opened, message, 0)


def test_a_class_that_was_imported_is_patched_at_home() -> None:
    home, other = ModuleType("home"), ModuleType("other")
    cls = type(handles.CLASS, (), {"__module__": "home"})
    vars(home)[handles.CLASS] = vars(other)[handles.CLASS] = cls
    decisions = [handles.decide(Environment(), module).decision for module in (home, other)]
    assert decisions == [Decision.APPLIED, Decision.NOT_NEEDED]
