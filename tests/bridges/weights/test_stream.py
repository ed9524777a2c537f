"""What stands between a bridge's stream and the rollout engine holds nothing back and keeps nothing."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from verl_mtp_plugin.bridges.weights.copies import fingerprint, from_owners
from verl_mtp_plugin.bridges.weights.export import watched
from verl_mtp_plugin.bridges.weights.superfluous import superfluous
from verl_mtp_plugin.bridges.weights.weight_names import is_mtp, listed
from verl_mtp_plugin.errors import AmbiguousWeightsError, MissingWeightsError


class Tensor:
    """Something that is gone when nobody keeps it."""


class Source:
    """A bridge's stream, and what became of it."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.made: list[weakref.ref[Tensor]] = []
        self.closed = False

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        try:
            for name in self.names:
                tensor = Tensor()
                self.made.append(weakref.ref(tensor))
                box = [(name, tensor)]
                del tensor
                yield box.pop()
        finally:
            self.closed = True


def test_tensors_come_one_by_one_and_are_not_kept() -> None:
    source = Source("a", "b", "c")
    stream = watched(source.stream(), lambda: ["b"], "a bridge")
    for number in (1, 2, 3):
        name, tensor = next(stream)
        assert name == "abc"[number - 1]
        assert len(source.made) == number, "it read ahead"
        del tensor
        assert source.made[-1]() is None
    assert list(stream) == []
    assert source.closed


def test_what_did_not_come_is_named_after_all_the_rest() -> None:
    source = Source("a", "x.base_layer.weight")
    stream = watched(source.stream(), lambda: ["x.weight", "y.weight"], "mbridge 1")
    assert [name for name, _ in (next(stream), next(stream))] == ["a", "x.base_layer.weight"]
    with pytest.raises(MissingWeightsError, match=r"MTP layers that mbridge 1 did not export: y\.weight;"):
        next(stream)


def test_a_name_that_comes_twice_ends_the_stream_before_the_second_is_sent() -> None:
    source = Source("a", "b", "a", "c")
    stream = watched(source.stream(), lambda: ["c"], "mbridge 1")
    assert [name for name, _ in (next(stream), next(stream))] == ["a", "b"]
    with pytest.raises(AmbiguousWeightsError, match="found a a second time among the weights that mbridge 1 exports;"):
        next(stream)
    assert source.closed


EMBEDDING = "embedding.word_embeddings.weight"


class Bridge:
    """mbridge as far as a stream goes: two stages, each with the embedding."""

    def _weight_to_hf_format(self, name: str, weight: int) -> tuple[list[str], list[int]]:
        return [name], [weight]

    def stream(self) -> Iterator[tuple[str, int]]:
        for name, weight in ((EMBEDDING, 1), ("a", 2), (EMBEDDING, 3), ("b", 4)):
            yield from zip(*self._weight_to_hf_format(name, weight))


WHOLE = [(EMBEDDING, 1), ("a", 2), ("b", 4)]


def test_a_copy_is_left_out_and_the_bridge_is_as_before() -> None:
    bridge = Bridge()
    assert list(from_owners(bridge, bridge.stream())) == WHOLE
    assert vars(bridge) == {}


def test_a_stream_that_broke_off_and_was_never_closed_takes_nothing_from_the_next() -> None:
    bridge = Bridge()
    broken = from_owners(bridge, bridge.stream())
    assert next(broken) == WHOLE[0]
    assert list(from_owners(bridge, bridge.stream())) == WHOLE
    again = from_owners(bridge, bridge.stream())
    assert next(again) == WHOLE[0]
    broken.close()  # type: ignore[attr-defined]  # in the middle of another
    assert list(again) == WHOLE[1:]
    assert vars(bridge) == {}


def test_a_converter_of_somebody_else_stays() -> None:
    bridge = Bridge()

    def doubled(name: str, weight: int) -> tuple[list[str], list[int]]:
        return [name], [2 * weight]

    bridge._weight_to_hf_format = doubled  # type: ignore[method-assign]
    assert list(from_owners(bridge, bridge.stream())) == [(name, 2 * weight) for name, weight in WHOLE]
    assert vars(bridge) == {"_weight_to_hf_format": doubled}


def test_a_fingerprint_tells_values_places_and_rows_apart() -> None:
    weight = torch.arange(12, dtype=torch.bfloat16).reshape(4, 3)
    assert fingerprint(weight) == fingerprint(weight.clone())
    changed, exchanged = weight.clone(), weight[[1, 0, 2, 3]]
    changed[2, 1] += 1
    assert len({fingerprint(each) for each in (weight, changed, exchanged, weight.float())}) == 4


def test_giving_up_closes_the_bridges_stream_and_demands_nothing() -> None:
    source = Source("a", "b")
    stream = watched(source.stream(), lambda: ["never"], "a bridge")
    next(stream)
    assert isinstance(stream, Iterator)
    stream.close()  # type: ignore[attr-defined]
    assert source.closed


def test_an_error_of_the_bridge_passes_through() -> None:
    def broken() -> Iterator[tuple[str, int]]:
        yield "a", 1
        raise KeyError("b")

    stream = watched(broken(), lambda: ["never"], "a bridge")
    next(stream)
    with pytest.raises(KeyError, match="b"):
        next(stream)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mtp.layers.0.eh_proj.weight", True),
        ("module.module.mtp.layers.0.enorm.weight", True),
        ("language_model.mtp.layers.1.hnorm.weight", True),
        ("optimizer.state.exp_avg.mtp.layers.0.enorm.weight", True),
        ("decoder.layers.0.mlp.linear_fc1.weight", False),
        ("decoder.mtp_gate.weight", False),
    ],
)
def test_which_names_are_of_mtp_layers(name: str, expected: bool) -> None:
    assert is_mtp(name) is expected


def test_long_lists_are_cut() -> None:
    assert listed(["b", "a"]) == "a, b"
    assert listed("fedcba") == "a, b, c, d, ... (6 in all)"


NAMES = ("lm_head.weight", "model.layers.1.norm.weight", "model.layers.2.enorm.weight")
COPIES = ("model.layers.2.embed_tokens.weight", "model.layers.3.shared_head.head.weight")


@pytest.mark.parametrize(
    ("architecture", "with_mtp", "expected"),
    [
        ("DeepseekV3ForCausalLM", False, {NAMES[2], *COPIES}),
        ("DeepseekV3ForCausalLM", True, {*COPIES}),
        ("MiMoForCausalLM", True, set()),
        ("LlamaForCausalLM", False, set()),
    ],
)
def test_what_a_checkpoint_has_and_need_not_be_exported(architecture: str, with_mtp: bool, expected: set[str]) -> None:
    config = SimpleNamespace(architectures=[architecture], num_hidden_layers=2)
    assert superfluous(config, (*NAMES, *COPIES), with_mtp=with_mtp) == expected


@pytest.mark.parametrize(
    ("tied", "with_mtp", "expected"), [(True, True, {NAMES[0]}), (True, False, set()), (False, True, set())]
)
def test_with_mtp_a_tied_model_has_no_head_to_export(tied: bool, with_mtp: bool, expected: set[str]) -> None:
    config = SimpleNamespace(architectures=["LlamaForCausalLM"], num_hidden_layers=2, tie_word_embeddings=tied)
    assert superfluous(config, NAMES, with_mtp=with_mtp) == expected
