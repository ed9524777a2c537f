"""The digest and the comparison themselves, on tensors that are cut, joined and copied at random."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_mtp_plugin.rollout.sglang import questions
from verl_mtp_plugin.rollout.sglang.checksum import MODULUS, Amount, Book, Ledger, Parameter, over_ranks
from verl_mtp_plugin.rollout.sglang.digest import CHUNK, as_integers, digest
from verl_mtp_plugin.rollout.sglang.tensor_names import unit

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def value(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> int:
    return as_integers([digest(tensor, dtype)])[0]


def amount(tensor: torch.Tensor) -> Amount:
    return Amount(tensor.numel(), value(tensor))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(DTYPES), st.integers(1, 6), st.integers(1, 6), st.data())
def test_parts_add_up_in_any_layout(seed: int, dtype: torch.dtype, rows: int, columns: int, data: Any) -> None:
    whole = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    dim = data.draw(st.sampled_from((0, 1)))
    cut = data.draw(st.integers(0, whole.shape[dim]))
    parts = whole.split([cut, whole.shape[dim] - cut], dim)
    assert sum(map(value, parts)) % MODULUS == value(whole) == value(whole.t()) == value(whole.flatten().flip(0))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-(2**15), 2**15 - 1), max_size=8), st.lists(st.integers(-(2**15), 2**15 - 1), max_size=8))
def test_equal_digests_are_equal_multisets(first: list[int], second: list[int]) -> None:
    """But for zeros, which pad."""
    bits = [torch.tensor(words, dtype=torch.int16).view(torch.bfloat16) for words in (first, second)]
    counts = [Counter(word for word in words if word) for words in (first, second)]
    assert (value(bits[0]) == value(bits[1])) is (counts[0] == counts[1])


def test_no_two_words_of_sixteen_bits_have_the_same_digest() -> None:
    words = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    assert len(set(as_integers([digest(word) for word in words[::7]]))) == len(words[::7])


def test_a_tensor_of_several_chunks() -> None:
    whole = torch.arange(CHUNK + 3, dtype=torch.int32).view(torch.float32)
    assert value(whole) == (value(whole[:CHUNK]) + value(whole[CHUNK:])) % MODULUS


def test_a_cast_is_the_cast_of_loading() -> None:
    sent = torch.randn(100, generator=torch.Generator().manual_seed(0))
    parameter = torch.zeros(100, dtype=torch.bfloat16)
    parameter.copy_(sent)
    assert value(sent, torch.bfloat16) == value(parameter) != value(sent)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.mtp_layers.0.self_attn.q_proj.weight", ("model.mtp_layers.0.self_attn", "q_proj.weight")),
        ("model.layers.61.mlp.experts.7.up_proj.weight", ("model.layers.61.mlp", "experts.up_proj.weight")),
        ("lm_head.weight", ("", "lm_head.weight")),
        ("mtp.fc.weight", ("mtp", "fc.weight")),
    ],
)
def test_units(name: str, expected: tuple[str, str]) -> None:
    assert unit(name) == expected


def shards(name: str, tensors: list[torch.Tensor]) -> Parameter:
    total = Amount(sum(t.numel() for t in tensors), sum(map(value, tensors)) % MODULUS)
    return Parameter(name, "bfloat16", len(tensors), total)


def ledger(tensors: dict[str, torch.Tensor]) -> Ledger:
    made = Ledger()
    for name, tensor in tensors.items():
        made.add(name, "bfloat16", amount(tensor))
    return made


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def test_experts_spread_over_ranks_are_compared_together() -> None:
    sent = {
        f"model.layers.9.mlp.experts.{expert}.{part}_proj.weight": random(4, 3, seed=expert * 3 + number)
        for expert in range(4)
        for number, part in enumerate(("gate", "up", "down"))
    }
    ranks: list[list[torch.Tensor]] = [[], []]
    for expert in range(4):
        ranks[expert % 2] += [
            sent[f"model.layers.9.mlp.experts.{expert}.{part}_proj.weight"] for part in ("gate", "up")
        ]
    fused = shards("model.decoder.mlp.experts.w13_weight", [torch.stack(rank) for rank in ranks])
    down = [sent[f"model.layers.9.mlp.experts.{expert}.down_proj.weight"] for expert in range(4)]
    second = shards("model.decoder.mlp.experts.w2_weight", [torch.stack(down[:2]), torch.stack(down[2:])])
    book = Book(complete=True)
    assert book.compare([fused, second], ledger(sent)).held == (fused.name, second.name)
    sent["model.layers.9.mlp.experts.2.up_proj.weight"] += 1
    compared = book.compare([fused, second], ledger(sent))
    assert compared.held == (second.name,)
    assert compared.different == {
        fused.name: ("model.layers.9.mlp.experts.gate_proj.weight", "model.layers.9.mlp.experts.up_proj.weight")
    }


def test_norms_that_are_alike_at_first_are_told_apart_later() -> None:
    ones = torch.ones(4, dtype=torch.bfloat16)
    book, norm = Book(complete=True), "model.decoder.input_layernorm.weight"
    names = [f"model.layers.{layer}.input_layernorm.weight" for layer in range(3)]
    assert book.compare([shards(norm, [ones, ones])], ledger(dict.fromkeys(names, ones))).held == (norm,)
    trained = {name: ones + layer for layer, name in enumerate(names)}
    assert book.compare([shards(norm, [trained[names[2]]] * 2)], ledger(trained)).held == (norm,)
    assert [book.may_need(f"model.layers.{layer}") for layer in range(3)] == [False, False, True]
    # From now on the second layer's numbers are wrong.
    assert book.compare([shards(norm, [trained[names[1]]] * 2)], ledger(trained)).different == {norm: (names[2],)}


def test_a_copy_on_some_ranks_only_is_no_copy() -> None:
    new, old = random(4, seed=1), random(4, seed=2)
    sent = ledger({"mtp.norm.weight": new})
    for ranks, held in (([new, new], True), ([new, old], False), ([old, old], False)):
        assert bool(Book(complete=True).compare([shards("model.norm.weight", ranks)], sent).held) is held


def test_a_drafter_that_was_wrong_is_still_compared_when_it_is_sent_again() -> None:
    book, name = Book(complete=True), "model.fc.weight"
    first, second = random(2, 2, seed=1), random(2, 2, seed=2)
    sent = ledger({"mtp.fc.weight": second, "mtp.norm.weight": random(3)})
    assert book.compare([shards(name, [first])], sent).different == {name: ("mtp.fc.weight",)}
    assert book.may_need("mtp")
    assert book.compare([shards(name, [second])], sent).held == (name,)


def test_a_tensor_that_is_sent_no_more() -> None:
    book, name, tensor = Book(complete=True), "model.fc.weight", random(2, 2)
    assert book.compare([shards(name, [tensor])], ledger({"mtp.fc.weight": tensor})).held == (name,)
    assert book.compare([shards(name, [tensor])], ledger({})).different == {name: ("mtp.fc.weight",)}


def test_what_has_other_names_or_sizes_or_types_is_not_compared() -> None:
    tensor = random(2, 2)
    wanted = [
        shards("model.other.weight", [tensor]),
        shards("model.fc.weight", [random(3, 3)]),
        Parameter("model.mtp.fc.weight", "float8_e4m3fn", 1, amount(tensor)),
    ]
    compared = Book(complete=True).compare(wanted, ledger({"mtp.fc.weight": tensor}))
    assert compared.uncompared == tuple(parameter.name for parameter in wanted)


def test_where_the_names_of_the_drafter_are_unknown_only_what_was_held_can_differ() -> None:
    book, name = Book(complete=False), "model.layers.0.fc.weight"
    first, second = random(2, 2, seed=1), random(2, 2, seed=2)
    sent = ledger({"model.layers.7.fc.weight": second})
    assert book.compare([shards(name, [first])], sent).uncompared == (name,)
    assert book.compare([shards(name, [second])], sent).held == (name,)
    assert book.compare([shards(name, [first])], sent).different == {name: ("model.layers.7.fc.weight",)}


def test_answers_of_several_schedulers() -> None:
    class Engine:
        async def _make_async_request(self, endpoint: str, payload: dict[str, str]) -> dict[str, Any]:
            return {"message": '{"ranks": [{"a": [2, "bfloat16", 1]}]} | {"ranks": []}'}

    found = asyncio.run(questions.ask(Engine(), questions.DIGEST))
    assert found == [{"ranks": [{"a": [2, "bfloat16", 1]}]}, {"ranks": []}]
    assert over_ranks(found[0]["ranks"]) == [Parameter("a", "bfloat16", 1, Amount(2, 1))]


@pytest.mark.parametrize("message", ['{"error": "KeyError: 1"}', "{not json"])
def test_a_scheduler_that_could_not_answer(message: str) -> None:
    class Engine:
        async def _make_async_request(self, endpoint: str, payload: dict[str, str]) -> dict[str, Any]:
            return {"message": message}

    with pytest.raises(questions.NoAnswerError):
        asyncio.run(questions.ask(Engine(), questions.DIGEST))


def test_a_server_that_is_gone_is_another_error() -> None:
    class Engine:
        async def _make_async_request(self, endpoint: str, payload: dict[str, str]) -> dict[str, Any]:
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        asyncio.run(questions.ask(Engine(), questions.DIGEST))


def test_a_question_that_is_not_ours_goes_to_sglang() -> None:
    asked = SimpleNamespace(action="snapshot")
    assert questions.check_weights(lambda self, request: (self, request), "scheduler", asked) == ("scheduler", asked)
