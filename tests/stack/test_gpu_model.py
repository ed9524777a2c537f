"""benchmarks/gpu's model and data, as verl's own datasets and transformers read them."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.gpu import data, model
from tests.contract import stacks

from .conftest import RunStack, results

SIZES = {"test": 4, "train": 8, "sft_val": 8, "sft": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu")
    model.make(path / "model", layers=2, hidden=128)
    data.write(path / "data", seed=3, sizes=SIZES)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "model", trust_remote_code=True)


def test_text_survives_the_tokenizer(tokenizer: Any) -> None:
    for text in [*data.corpus(200, seed=77), "Ünknown: 1.5e3 €"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_digit_is_a_token(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("12345+6")["input_ids"]) == [*"12345", "+", "6"]


def test_special_tokens_are_those_of_the_config(tokenizer: Any) -> None:
    config = model.configuration(layers=2, hidden=128, mtp_layers=1)
    assert tokenizer.convert_ids_to_tokens([config["pad_token_id"], config["eos_token_id"]]) == ["<|pad|>", "<|end|>"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (config["pad_token_id"], config["eos_token_id"])


def test_all_splits_differ(folder: Path) -> None:
    pandas = importlib.import_module("pandas")  # untyped

    def numbers(text: str) -> tuple[str, ...]:
        return tuple(re.findall(r"\d+", text))

    asked: list[tuple[str, ...]] = []
    for name, size in SIZES.items():
        frame = pandas.read_parquet(folder / "data" / f"{name}.parquet")
        column = frame["messages"] if "messages" in frame else frame["prompt"]
        assert len(column) == size
        asked += [numbers(messages[0]["content"]) for messages in column]
    assert len(set(asked)) == sum(SIZES.values())


def test_verl_trains_on_the_response_and_its_end_alone(folder: Path, run_stack: RunStack) -> None:
    code = f"""
        import json
        from transformers import AutoTokenizer
        from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

        tokenizer = AutoTokenizer.from_pretrained({str(folder / "model")!r}, trust_remote_code=True)
        file, options = {str(folder / "data" / "sft.parquet")!r}, {{"pad_mode": "no_padding", "max_length": 512}}
        dataset = MultiTurnSFTDataset(file, tokenizer, options)
        for row, (user, assistant) in zip(dataset, dataset.messages[:5]):
            parts = [tokenizer.decode(row["input_ids"][row["loss_mask"] == part]) for part in (0, 1)]
            print("=> " + json.dumps([*parts, user["content"], assistant["content"]]))
    """
    rows = [json.loads(line) for line in results(run_stack(code, verl=stacks.VERL[-1]))]
    assert len(rows) == 5
    for prompt, response, question, answer in rows:
        assert prompt == f"<|user|>{question}<|end|><|assistant|>"
        assert response == f"{answer}<|end|>"


def test_transformers_loads_the_policy_and_leaves_the_mtp_layer(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded, report = AutoModelForCausalLM.from_pretrained(
        folder / "model", trust_remote_code=True, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.num_nextn_predict_layers == 1
    ours = load_file(folder / "model" / "model.safetensors")
    theirs = loaded.state_dict()
    assert {name for name in ours if name not in theirs} == {name for name in ours if "mtp_layers" in name}
    assert all(torch.equal(theirs[name], ours[name].float()) for name in theirs)


def test_number_of_parameters(tmp_path: Path) -> None:
    hidden, inner, vocabulary = 256, 704, 4096  # two heads of 128, one for keys and values
    layer = hidden * (256 + 2 * 128) + 256 + 2 * 128 + 256 * hidden + 3 * hidden * inner + 2 * hidden
    mtp = layer + 3 * hidden + 2 * hidden * hidden
    expected = 2 * vocabulary * hidden + hidden + 3 * layer + mtp
    assert model.make(tmp_path, layers=3, hidden=hidden) == expected
