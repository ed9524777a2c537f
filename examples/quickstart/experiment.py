"""The experiment: main-only phase, then MTP phase and control from the same checkpoint, on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import model
import torch
from data import Problems
from engine import Engine, Step
from measure import TEMPERATURES, draft_loss, log_prob_differences, measure
from results import Course, Plan, Results
from torch import Tensor

BATCH: Final = 32
HELD_OUT_SEED: Final = 12345
#: bf16 in the engine, fp32 in the sampler: what their log-probabilities may differ by, on average, and at most: where
#: the model is undecided, rounding tips the balance.
LOG_PROB_TOLERANCE: Final = (0.01, 0.5)


#: A context for a stretch of training; it yields what to call after each step.
Bar = Callable[[str, int], AbstractContextManager[Callable[[Step], None]]]


class Experiment:
    """Runs the phases over folders below ``folder``."""

    def __init__(self, plan: Plan, folder: Path, bar: Bar) -> None:
        self.plan, self.folder, self.bar = plan, folder, bar
        self.held_out = tuple(Problems(HELD_OUT_SEED).take(plan.held_out))
        self.results = Results()

    def run(self) -> Results:
        """All phases, and the checks that go with each."""
        plan, results = self.plan, self.results
        initial = model.make(self.folder / "initial", plan.seed)
        engine = Engine(initial, train_mtp=False, steps=plan.steps_main)
        exported, wanted = engine.export(), model.load(initial)
        changed = _changed(wanted, exported)
        results.check(
            "Hugging Face -> Megatron -> Hugging Face is bit-equal",
            exported.keys() == wanted.keys() and not changed,
            f"{len(exported)} of {len(wanted)} tensors, {len(changed)} differ",
        )
        self._train(engine, "main model only", results.main, plan.steps_main, seed=plan.seed)
        weights = engine.export()
        self._check_mtp_tensors("main-only phase", wanted, weights, trained=False)
        baseline = model.copy_with_weights(initial, self.folder / "after_main", weights)

        engine = Engine(baseline, train_mtp=True, steps=plan.steps_mtp)
        first_batch = Problems(plan.seed + 1, self.held_out).take(BATCH)
        reference = draft_loss(weights, engine.tokenizer, first_batch)
        self._train(engine, "MTP trained", results.trained, plan.steps_mtp, seed=plan.seed + 1)
        reported = results.trained.steps[0].mtp_loss
        results.check(
            "verl's first MTP loss is the sampler's draft loss on that batch",
            reported is not None and abs(reported - reference) < 0.02 * reference,
            f"verl {reported if reported is None else round(reported, 4)}, sampler {reference:.4f}",
        )
        after = engine.export()
        self._check_mtp_tensors("MTP phase", weights, after, trained=True)
        self._check_log_probs(engine, after)
        model.copy_with_weights(baseline, self.folder / "after_mtp", after)

        engine = Engine(baseline, train_mtp=False, steps=plan.steps_mtp)
        self._train(engine, "control, MTP not trained", results.control, plan.steps_mtp, seed=plan.seed + 1)
        self._check_mtp_tensors("control", weights, engine.export(), trained=False)
        self._check_acceptance()
        return results

    def _train(self, engine: Engine, name: str, course: Course, steps: int, seed: int) -> None:
        stream = Problems(seed, self.held_out)
        before = len(self.results.main.steps) if course is not self.results.main else 0
        self._measure(engine, before, course)
        with self.bar(name, steps) as advance:
            for i in range(1, steps + 1):
                step = engine.train(stream.take(BATCH))
                course.steps.append(step)
                if i % self.plan.measure_every == 0 or i == steps:
                    self._measure(engine, before + i, course)
                advance(step)

    def _measure(self, engine: Engine, step: int, course: Course) -> None:
        measured, course.example = measure(engine.export(), engine.tokenizer, self.held_out, step)
        course.measured.append(measured)

    def _check_mtp_tensors(
        self, phase: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, trained: bool
    ) -> None:
        mtp = [name for name in before if ".mtp_layers." in name]
        changed = [name for name in _changed(before, after) if name in mtp]
        self.results.check(
            f"MTP tensors {'all changed' if trained else 'untouched'} by the {phase}",
            len(changed) == (len(mtp) if trained else 0),
            f"{len(changed)} of {len(mtp)} changed",
        )

    def _check_log_probs(self, engine: Engine, weights: Mapping[str, Tensor]) -> None:
        problems = list(self.held_out[:BATCH])
        with engine.counting_mtp_calls() as calls:
            recomputed = engine.log_probs(problems)
        difference = log_prob_differences(weights, engine.tokenizer, problems, recomputed)
        average, most = float(difference.mean()), float(difference.max())  # NaN is below nothing
        self.results.check(
            "log-prob recompute is finite and equals the sampler's",
            average < LOG_PROB_TOLERANCE[0] and most < LOG_PROB_TOLERANCE[1],
            f"differs by {average:.4f} on average, {most:.4f} at most (bf16)",
        )
        self.results.check("log-prob recompute calls no MTP layer", not calls, f"{len(calls)} calls")

    def _check_acceptance(self) -> None:
        results, margin = self.results, self.plan.margin
        for temperature in (f"{t:g}" for t in TEMPERATURES):
            trained = results.trained.last.acceptance[temperature]
            for name, other in (("baseline", results.main.last), ("control", results.control.last)):
                rest = other.acceptance[temperature]
                results.check(
                    f"acceptance at T={temperature} clearly above {name} (by {margin:g})",
                    trained > rest + margin,
                    f"{trained:.3f} against {rest:.3f}",
                )


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    return [name for name in before if name not in after or not torch.equal(before[name], after[name])]
