"""The self-made task of benchmarks/gpu: its text is right, its reward exact, its tokenizer reversible."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from benchmarks.gpu import data, pretrain, reward, solve


def score(text: str, truth: str = "132") -> float:
    return reward.compute_score(data.DATA_SOURCE, text, truth)


@pytest.mark.parametrize(
    "text",
    [
        "Answer: 132",
        "We get 132.\nAnswer: 132",
        "Answer: 132<|end|>",
        "Answer: 132<|end|>\n",
        "Answer: 132 ",
    ],
)
def test_right_answers(text: str) -> None:
    assert score(text) == 1.0


@pytest.mark.parametrize(
    "text",
    ["", "132", "Answer: 133", "Answer: 1320", "Answer: 13", "Answer: 132 or 133", "Answer: 132\nNow", "Answer: -132"],
)
def test_wrong_answers(text: str) -> None:
    assert score(text) == 0.0


def test_every_equation_of_the_text_holds_and_it_earns_the_reward() -> None:
    rng = random.Random(5)
    source = data.problems(rng)
    lengths = set()
    for problem, _ in zip(source, range(300)):
        text = problem.working(rng)
        for left, right, carry, total in re.findall(r"(\d)\+(\d)\+(\d)=(\d+)", text):
            assert int(left) + int(right) + int(carry) == int(total)
        *sums, last = re.findall(r"(\d{2,})\+(\d+)\..*? (\d+)\.$", text, flags=re.MULTILINE)
        for (left, right, total), after in zip([*sums, last], [*sums[1:], last, last]):
            assert int(left) + int(right) == int(total)
            assert after is last or after[0] == total  # each partial sum goes on from the one before
        assert score(text, str(sum(problem.terms))) == 1.0
        assert score(text, str(sum(problem.terms) + 1)) == 0.0
        lengths.add(len(problem.terms))
    assert lengths == set(data.TERMS)


@pytest.mark.parametrize(
    ("left", "right", "steps"),
    [(47, 85, "7+5+0=12; 4+8+1=13"), (999, 1, "9+1+0=10; 9+0+1=10; 9+0+1=10"), (20, 305, "0+5+0=5; 2+0+0=2; 0+3+0=3")],
)
def test_digit_by_digit(left: int, right: int, steps: str) -> None:
    assert data.digit_by_digit(left, right) == steps


def test_no_problem_twice() -> None:
    found = [problem.terms for problem, _ in zip(data.problems(random.Random(0)), range(5000))]
    assert len(set(found)) == 5000


def test_a_row_has_what_verl_reads() -> None:
    row = data.task(data.Problem((1234, 5678, 9999)), random.Random(0), "test", 3)
    assert row["reward_model"] == {"style": "rule", "ground_truth": "16911"}
    assert row["prompt"][0]["role"] == "user"
    assert "1234, 5678 and 9999" in row["prompt"][0]["content"]
    assert row["data_source"] == data.DATA_SOURCE
    assert row["extra_info"] == {"split": "test", "index": 3}


def safetensors(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    header = json.dumps({name: {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def test_a_trained_model_is_the_last_checkpoints_weights_and_the_first_models_files(tmp_path: Path) -> None:
    safetensors(tmp_path / "model", "a", "model.mtp_layers.0.b")
    (tmp_path / "model" / "config.json").write_text("{}")
    safetensors(tmp_path / "checkpoints" / "global_step_2" / "model" / "huggingface", "a", "model.mtp_layers.0.b")
    pretrain.collect(tmp_path / "model", tmp_path / "checkpoints", tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}


def test_a_checkpoint_without_mtp_is_refused(tmp_path: Path) -> None:
    safetensors(tmp_path / "model", "a", "model.mtp_layers.0.b")
    safetensors(tmp_path / "checkpoints" / "global_step_2" / "huggingface", "a")
    with pytest.raises(SystemExit, match=re.escape("model.mtp_layers.0.b")):
        pretrain.collect(tmp_path / "model", tmp_path / "checkpoints", tmp_path / "out")


def answered(text: str, tokens: int, verifications: int, finish: str = "stop") -> dict[str, object]:
    meta = {"completion_tokens": tokens, "finish_reason": {"type": finish}}
    return {"text": text, "meta_info": meta | ({"spec_verify_ct": verifications} if verifications else {})}


def test_summary_of_served_answers() -> None:
    outputs = [answered("Answer: 7", 30, 10), answered("Answer: 8", 10, 10, finish="length")]
    found = solve.summary(outputs, ["7", "7"], drafts=2, seconds=4.0)
    assert found == {
        "problems": 2, "solved": 0.5, "mean_tokens": 20.0, "cut_short": 1, "tokens_per_second": 10.0,
        "accept_length": 2.0, "accept_rate": 0.5,
    }  # fmt: skip


def test_summary_without_speculation() -> None:
    assert "accept_rate" not in solve.summary([answered("Answer: 7", 30, 0)], ["7"], drafts=0, seconds=1.0)
