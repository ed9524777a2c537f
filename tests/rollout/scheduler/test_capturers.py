"""What SGLang records of a process is the target's, whatever drafters stand beside it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from verl_mtp_plugin.rollout.sglang import capturers

from .releases import SGLANG
from .test_routes import of

#: SGLang records routed experts, and takes the drafter's for the target's.
EXPERTS = ("0.5.8", "0.5.12.post1", "0.5.20")
#: It does not record indexer top-k at all.
WITHOUT_INDEXER = ("0.5.6", "0.5.8")


def recorded(release: str, mode: str) -> dict[str, Any]:
    flows = of(release)["recorded"][mode]
    return {what: outcome for what, outcome in flows.items() if what != "distribution"}


@pytest.mark.parametrize("release", SGLANG)
def test_what_is_recorded_differs_by_release(release: str) -> None:
    kinds = {what.partition(",")[0] for what in recorded(release, "bare")}
    expected = {"indexer"} - ({"indexer"} if release in WITHOUT_INDEXER else set())
    assert kinds == expected | ({"experts"} if release in EXPERTS else set())


@pytest.mark.parametrize("release", SGLANG)
def test_without_the_patch_the_drafters_layer_is_the_targets_first(release: str) -> None:
    for what, outcome in recorded(release, "bare").items():
        assert outcome == {"kept": False, "wrong_layers": [0]}, what


@pytest.mark.parametrize("release", SGLANG)
def test_the_targets_rows_are_the_targets(release: str) -> None:
    """One drafter or several, copied to the host at once or later; also where a CUDA graph of a drafter is captured."""
    for what, outcome in recorded(release, "patched").items():
        assert outcome == {"kept": True, "wrong_layers": []}, what


@pytest.mark.parametrize("release", SGLANG)
def test_the_distribution_of_experts_is_the_targets(release: str) -> None:
    found = {mode: of(release)["recorded"][mode]["distribution"] for mode in ("bare", "patched")}
    assert found["bare"]["target"] == found["patched"]["target"] == found["bare"]["draft"] == [1, 2]
    assert found["patched"]["draft"] == [0, 0]


@pytest.mark.parametrize("release", SGLANG)
def test_every_release_is_mended_or_needs_it_not(release: str) -> None:
    decided = of(release)["decided"]
    experts = "applied" if release in EXPERTS else "not_needed"
    indexer = "not_needed" if release in WITHOUT_INDEXER else "applied"
    assert [decided[patch.id] for patch in capturers.PATCHES] == [experts, indexer, "applied"]


# -- a process that nobody drafts in, or where nothing is recorded ----------------------------------------------------


class Capturer:
    """As SGLang's."""

    def __init__(self) -> None:
        self.device_cache = SimpleNamespace(buffer=torch.zeros(4, 3, 1, dtype=torch.int32))
        self.host_cache = SimpleNamespace(buffer=torch.zeros(4, 3, 1, dtype=torch.int32))

    def capture(self, layer_id: int, topk_ids: Any) -> None:
        self.device_cache.buffer[: len(topk_ids), layer_id] = topk_ids

    def on_forward_end(self, count: int) -> Any:
        return SimpleNamespace(topk=self.device_cache.buffer[:count], out_cache_loc=torch.arange(count))


INSTALLED: list[Any] = [None]


def get_global_experts_capturer() -> Any:
    return INSTALLED[0]


def init_routed_experts_capturer(runner: Any) -> str:
    """As the method of SGLang's model runner, whose module has the getter."""
    INSTALLED[0] = runner.makes
    return "installed"


@pytest.fixture
def init() -> Iterator[Any]:
    patch = capturers.PATCHES[0]
    INSTALLED[0] = None
    yield patch.build(init_routed_experts_capturer)
    INSTALLED[0] = None


def test_a_target_alone_is_left_as_it_is(init: Any) -> None:
    capturer = Capturer()
    before = set(vars(capturer))
    assert init(SimpleNamespace(is_draft_worker=False, makes=capturer)) == "installed"
    assert [capturer] == INSTALLED
    assert set(vars(capturer)) == before


def test_a_drafter_where_nothing_is_recorded_is_left_as_it_is(init: Any) -> None:
    nothing = object()
    init(SimpleNamespace(is_draft_worker=False, makes=nothing))
    assert init(SimpleNamespace(is_draft_worker=True, makes=None)) == "installed"
    assert INSTALLED == [None]


def test_the_model_of_a_drafter_is_left_as_it_is_where_nothing_is_recorded() -> None:
    off = dict.fromkeys(capturers.RECORDS)
    for draft, arguments in [(True, off), (True, {}), (False, {**off, "enable_return_routed_experts": True})]:
        runner = SimpleNamespace(forward=len, model=SimpleNamespace(forward=max), is_draft_worker=draft)
        runner.server_args = SimpleNamespace(**arguments)
        assert capturers.load_model(lambda runner: "loaded", runner) == "loaded"
        assert (runner.forward, runner.model.forward) == (len, max)


# -- a drafter that SGLang does not run through its runner or its model -----------------------------------------------


@pytest.fixture
def guarded(init: Any) -> Capturer:
    capturer = Capturer()
    init(SimpleNamespace(is_draft_worker=False, makes=capturer))
    for _ in range(2):  # the second drafter changes nothing
        assert init(SimpleNamespace(is_draft_worker=True, makes=Capturer())) is None
    assert [capturer] == INSTALLED
    return capturer


def forward(capturer: Capturer, layers: range, value: int) -> Any:
    for layer in layers:
        capturer.capture(layer_id=layer, topk_ids=torch.full((2, 1), value, dtype=torch.int32))
    return capturer.on_forward_end(2)


def test_what_is_copied_later_is_copied_now(guarded: Capturer) -> None:
    output = forward(guarded, range(3), 7)
    guarded.capture(0, torch.full((2, 1), 9, dtype=torch.int32))
    assert output.topk.flatten().tolist() == [7] * 6


def test_a_forward_pass_that_ends_before_the_targets_last_layer_is_not_the_targets(guarded: Capturer) -> None:
    assert forward(guarded, range(3), 7) is not None
    assert forward(guarded, range(1), 9) is None
    assert forward(guarded, range(3), 8).topk.flatten().tolist() == [8] * 6


def test_the_replay_of_a_cuda_graph_is_the_targets(guarded: Capturer) -> None:
    forward(guarded, range(3), 7)
    assert guarded.on_forward_end(2) is not None  # it captures nothing by itself


def test_a_prefill_in_several_parts_is_the_targets(guarded: Capturer) -> None:
    forward(guarded, range(3), 7)
    assert forward(guarded, range(2), 8) is None
    assert forward(guarded, range(2, 3), 8).topk.flatten().tolist() == [8] * 6


# -- probes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", capturers.PATCHES, ids=lambda patch: patch.id)
def test_a_runner_that_lacks_what_is_called_is_unsupported(patch: Any) -> None:
    class ModelRunner:
        def init_routed_experts_capturer(self) -> None: ...

        def init_indexer_capturer(self) -> None: ...

        def forward(self) -> None: ...

        def load_model(self) -> None: ...

    module: Any = SimpleNamespace(ModelRunner=ModelRunner)
    assert str(patch.decide(None, module).decision) == "unsupported"
