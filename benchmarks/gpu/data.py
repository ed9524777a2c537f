"""Sums of several numbers, worked out in words: text to train a model on, and problems with one right answer.

    python -m benchmarks.gpu.data FOLDER

writes ``sft.parquet`` and ``sft_val.parquet`` (conversations, as verl's SFT trainer reads them), ``train.parquet`` and
``test.parquet`` (prompts and answers, as verl's RL trainers read them). No problem is in two of the four.

The writer of the text works some additions out digit by digit and writes down the result of others at once. A model of
it does the first well and the second badly, so reinforcement learning has something to find: the careful way. The words
vary from text to text, so that not every next token can be foreseen.
"""

from __future__ import annotations

import argparse
import importlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA_SOURCE = "sums"
DIGITS = (3, 4)  # of each number
TERMS = (3, 4)
CAREFUL = 0.5  # share of the additions that are worked out

QUESTIONS = ("Add up {}.", "What is the sum of {}?", "Please add {}.", "Find the total of {}.")
OPENINGS = (
    "I take the numbers one after the other.",
    "Let me go from left to right.",
    "We begin with the first number and add the others.",
    "Step by step:",
)
NEXT = ("Now", "Then", "Next", "After that")
RESULT = ("This gives", "We get", "The result is", "That makes")


@dataclass(frozen=True)
class Problem:
    terms: tuple[int, ...]

    @property
    def answer(self) -> str:
        return str(sum(self.terms))

    def question(self, rng: random.Random) -> str:
        *first, last = map(str, self.terms)
        return rng.choice(QUESTIONS).format(f"{', '.join(first)} and {last}")

    def working(self, rng: random.Random) -> str:
        """The response: every partial sum, then ``Answer: ...``."""
        lines = [rng.choice(OPENINGS)]
        total = self.terms[0]
        for term in self.terms[1:]:
            steps = f" {digit_by_digit(total, term)}." if rng.random() < CAREFUL else ""
            line = f"{rng.choice(NEXT)} {total}+{term}.{steps} {rng.choice(RESULT)} {total + term}."
            lines.append(line)
            total += term
        return "\n".join([*lines, f"Answer: {total}"])


def digit_by_digit(left: int, right: int) -> str:
    """Ones first, ``digit+digit+carry=sum`` each: 47+85 is ``7+5+0=12; 4+8+1=13``."""
    places = max(len(str(left)), len(str(right)))
    carry, steps = 0, []
    for one, other in zip(f"{left:0{places}}"[::-1], f"{right:0{places}}"[::-1]):
        digits = int(one) + int(other) + carry
        steps.append(f"{one}+{other}+{carry}={digits}")
        carry = digits // 10
    return "; ".join(steps)


def problems(rng: random.Random) -> Iterator[Problem]:
    """Endless, and none of them twice."""
    seen: set[Problem] = set()
    while True:
        count = rng.choice(TERMS)
        problem = Problem(tuple(random_number(rng) for _ in range(count)))
        if problem not in seen:
            seen.add(problem)
            yield problem


def random_number(rng: random.Random) -> int:
    digits = rng.choice(DIGITS)
    return rng.randrange(10 ** (digits - 1), 10**digits)


def conversation(problem: Problem, rng: random.Random) -> dict[str, Any]:
    """A row for verl's SFT trainer."""
    user = {"role": "user", "content": problem.question(rng)}
    return {"messages": [user, {"role": "assistant", "content": problem.working(rng)}]}


def task(problem: Problem, rng: random.Random, split: str, index: int) -> dict[str, Any]:
    """A row for verl's RL trainers."""
    return {
        "data_source": DATA_SOURCE,
        "prompt": [{"role": "user", "content": problem.question(rng)}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {"split": split, "index": index},
    }


def corpus(count: int, seed: int = 0) -> list[str]:
    """Text such as the data sets have, for the tokenizer."""
    rng = random.Random(seed)
    source = problems(rng)
    return [f"{problem.question(rng)}\n{problem.working(rng)}" for problem, _ in zip(source, range(count))]


def write(folder: Path, seed: int, sizes: dict[str, int]) -> None:
    pandas = importlib.import_module("pandas")  # untyped
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    source = problems(rng)
    for name, size in sizes.items():
        if name.startswith("sft"):
            rows = [conversation(next(source), rng) for _ in range(size)]
        else:
            rows = [task(next(source), rng, name, index) for index in range(size)]
        pandas.DataFrame(rows).to_parquet(folder / f"{name}.parquet")
        print(f"{folder / name}.parquet: {size} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sft", type=int, default=120_000)
    parser.add_argument("--train", type=int, default=8192)
    parser.add_argument("--test", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sizes = {"test": args.test, "train": args.train, "sft_val": 256, "sft": args.sft}
    write(args.folder, args.seed, sizes)


if __name__ == "__main__":
    main()
