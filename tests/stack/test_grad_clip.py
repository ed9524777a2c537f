"""Gradient norm and clipping of MTP on its own, with the optimizers of every real megatron-core."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from functools import lru_cache
from typing import Any

import pytest

from tests.contract.stacks import MEGATRON_CORE, ROOT, layer

from .conftest import MARK

CLIP_GRAD, MAX_NORM = 0.2, 0.05  # as in grad_clip_run
CLIPPED = ("fp32", "bf16", "distributed", "distributed_bf16", "precision_aware", "moe", "moe_distributed")
KINDS = (*CLIPPED, "unclipped")
APPLIED = {f"training.grad_clip.{name}": "applied" for name in ("chained", "mixed_precision", "fp32")}

Report = dict[str, Any]


def start(release: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    environment = dict(os.environ, PYTHONPATH=str(layer("megatron-core", release)), OMP_NUM_THREADS="1", **environ)
    command = [sys.executable, "-W", "ignore", "-m", "tests.stack.grad_clip_worker", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def answers(*workers: subprocess.Popen[str]) -> list[tuple[int, str, str]]:
    """Exit status, standard output and standard error of each."""
    try:
        found = [(*worker.communicate(timeout=180), worker.returncode) for worker in workers]
        return [(status, out, err) for out, err, status in found]
    finally:
        for worker in workers:
            worker.kill()


def parsed(status: int, out: str, err: str) -> Any:
    assert status == 0, err[-4000:]
    return json.loads(out.splitlines()[-1].removeprefix(MARK))


@lru_cache
def _one_process(release: str) -> tuple[int, str, str]:
    return answers(start(release, "one", *KINDS, *(("detach_heads",) if release == MEGATRON_CORE[-1] else ())))[0]


def measured(release: str) -> Any:
    """What one process finds on this release."""
    return parsed(*_one_process(release))


def two_processes(release: str, case: str) -> list[Any]:
    """What each of two processes finds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        start(release, case, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in "01"
    ]
    return [parsed(*answer) for answer in answers(*ranks)]


def norms(report: Report, owner: str) -> list[float]:
    """Norms from the gradients themselves, in double precision."""
    return [math.sqrt(step[owner] + step[f"{owner} split"]) for step in report["squares"]]


def close(values: list[float]) -> Any:
    return pytest.approx(values, rel=1e-5)


def factor(limit: float, norm: float) -> float:
    """What is left of a gradient after Megatron's clipping."""
    return min(1.0, limit / (norm + 1e-6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("release", MEGATRON_CORE)
class TestOneProcess:
    def test_apart_the_policy_is_bit_for_bit_that_of_a_model_without_mtp(self, release: str, kind: str) -> None:
        found = measured(release)["kinds"][kind]
        for how in ("apart", "max_norm"):
            for what in ("norms", "zeros", "policy"):
                assert found[how][what] == found["plain"][what], (how, what)
        assert min(found["plain"]["norms"]) > 10 * CLIP_GRAD
        # The comparison can fail: with Megatron's one norm these differ, and the weights with them where it clips.
        assert all(joint > plain for joint, plain in zip(found["joint"]["norms"][:1], found["plain"]["norms"]))
        assert (found["joint"]["policy"] == found["plain"]["policy"]) is (kind == "unclipped")

    def test_not_apart_everything_is_as_megatron_has_it(self, release: str, kind: str) -> None:
        found = measured(release)["kinds"][kind]
        for what in ("norms", "zeros", "policy", "mtp"):
            assert found["joint"][what] == found["untracked"][what], what
        both = [math.hypot(*pair) for pair in zip(norms(found["joint"], "mtp"), norms(found["joint"], "policy"))]
        assert found["joint"]["norms"] == close(both)

    def test_the_norm_of_mtp_is_that_of_its_gradients(self, release: str, kind: str) -> None:
        found = measured(release)["kinds"][kind]
        for how in ("joint", "apart", "max_norm"):
            assert found[how]["mtp_norms"] == close(norms(found[how], "mtp")), how
            assert min(found[how]["mtp_norms"]) > 2 * MAX_NORM
        for how in ("plain", "untracked"):
            assert set(found[how]["mtp_norms"]) == {None}

    def test_mtp_is_scaled_by_its_own_norm_and_limit(self, release: str, kind: str) -> None:
        found = measured(release)["kinds"][kind]
        assert len({found[how]["mtp"] for how in ("joint", "apart", "max_norm")}) == (2 if kind == "unclipped" else 3)
        if kind not in ("fp32", "moe", "unclipped"):
            return  # with Adam or bf16 weights the update does not show the factor
        limits = {"apart": CLIP_GRAD, "max_norm": MAX_NORM}
        if kind == "unclipped":
            limits["apart"] = math.inf
        for how, limit in limits.items():
            for norm, left in zip(found[how]["mtp_norms"], found[how]["factors"]):
                assert left == pytest.approx([factor(limit, norm)] * 2, rel=1e-3), how

    def test_the_optimizers_are_those_that_are_meant(self, release: str, kind: str) -> None:
        name = "FP32Optimizer"
        if kind in ("bf16", "distributed", "distributed_bf16", "precision_aware", "moe_distributed"):
            name = "Float16OptimizerWithFloat16Params" if kind == "bf16" else "DistributedOptimizer"
        expected = [name] * (2 if kind.startswith("moe") else 1)
        assert measured(release)["kinds"][kind]["apart"]["optimizers"] == expected


@pytest.mark.parametrize("release", MEGATRON_CORE)
class TestBesides:
    def test_an_optimizer_that_is_no_chain(self, release: str) -> None:
        for name, found in measured(release)["alone"].items():
            assert found["apart"]["optimizers"] == [], name
            for what in ("norms", "policy"):
                assert found["apart"][what] == found["plain"][what], (name, what)
                assert found["joint"][what] != found["plain"][what], (name, what)
            assert found["apart"]["mtp_norms"] == close(norms(found["apart"], "mtp"))

    def test_shared_parameters_are_not_mtps(self, release: str) -> None:
        found = measured(release)["parameters"]
        assert len(found) == 5
        assert all(found.values()), found

    def test_a_skipped_step_has_no_norm(self, release: str) -> None:
        found = measured(release)["overflow"]
        assert found["before"] > 0
        assert (found["result"], found["after"]) == ([False, None, None], None)
        assert found["names"] == ["prepare_grads"]  # the one that the test put there

    def test_parameters_of_unknown_origin_are_refused_only_apart(self, release: str) -> None:
        assert measured(release)["untraced"] == {
            "found": "an optimizer (ChainedOptimizer) whose parameters cannot be traced to the model's",
            "norm": None,
            "names": [],
        }

    def test_nothing_is_kept_alive(self, release: str) -> None:
        assert measured(release)["forgotten"] == [True, True]

    def test_reverting_brings_megatrons_step_back(self, release: str) -> None:
        found = measured(release)
        assert found["decisions"] == APPLIED
        untracked = found["kinds"]["fp32"]["untracked"]
        assert {k: found["reverted"][k] for k in untracked} == untracked


def test_a_norm_that_stays_on_the_device() -> None:
    found = measured(MEGATRON_CORE[-1])["tensor"]
    assert found["apart"]["policy"] == found["max_norm"]["policy"] == found["plain"]["policy"]
    assert found["joint"]["policy"] != found["plain"]["policy"]
    assert found["apart"]["mtp_norms"] == close(norms(found["apart"], "mtp"))
    for norm, left in zip(found["max_norm"]["mtp_norms"], found["max_norm"]["factors"]):
        assert left == pytest.approx([factor(MAX_NORM, norm)] * 2, rel=1e-3)


def test_megatrons_own_separation_gives_the_same_bits_and_is_left_in_force() -> None:
    kinds = measured(MEGATRON_CORE[-1])["kinds"]
    native, ours = kinds["detach_heads"], kinds["fp32"]
    for what in ("norms", "policy", "mtp"):
        assert native["untracked"][what] == native["joint"][what] == native["apart"][what] == ours["apart"][what]
    assert native["max_norm"]["mtp"] == ours["max_norm"]["mtp"]
    for how in ("joint", "apart", "max_norm"):
        assert native[how]["mtp_norms"] == close(norms(native[how], "mtp")), how


@pytest.mark.parametrize("release", [MEGATRON_CORE[0], "0.16.1", MEGATRON_CORE[-1]])
def test_a_pipeline_stage_without_mtp_takes_part(release: str) -> None:
    first, last = two_processes(release, "pp")
    assert len(first) == 5
    for kind in first:
        joint, apart = ([rank[kind][how] for rank in (first, last)] for how in ("joint", "apart"))
        for ranks in (joint, apart):
            assert ranks[0]["norms"] == ranks[1]["norms"]
            assert ranks[0]["mtp_norms"] == ranks[1]["mtp_norms"] == close(norms(ranks[1], "mtp"))
            assert norms(ranks[0], "mtp") == [0.0, 0.0]
        policy = [math.hypot(*pair) for pair in zip(*(norms(rank, "policy") for rank in apart))]
        assert apart[0]["norms"] == close(policy), kind
        assert joint[0]["norms"] == close([math.hypot(*pair) for pair in zip(policy, joint[0]["mtp_norms"])]), kind
        assert all(joint[rank]["policy"] != apart[rank]["policy"] for rank in (0, 1)), kind
        if kind in ("fp32", "moe"):
            for norm, left in zip(apart[1]["mtp_norms"], apart[1]["factors"]):
                assert left == pytest.approx([factor(CLIP_GRAD, norm)] * 2, rel=1e-3)


@pytest.mark.parametrize("release", ["0.16.1", MEGATRON_CORE[-1]])
def test_tensor_parallel_ranks_agree(release: str) -> None:
    ranks = two_processes(release, "tp")
    assert len(ranks[0]) == 2
    for kind in ranks[0]:
        for rank in ranks:
            assert rank[kind]["apart"]["policy"] == rank[kind]["plain"]["policy"] != rank[kind]["joint"]["policy"]
            assert rank[kind]["apart"]["norms"] == rank[kind]["plain"]["norms"]
        for how in ("joint", "apart"):
            steps = zip(*(rank[kind][how]["squares"] for rank in ranks))
            expected = [math.sqrt(a["mtp"] + a["mtp split"] + b["mtp split"]) for a, b in steps]
            assert ranks[0][kind][how]["mtp_norms"] == ranks[1][kind][how]["mtp_norms"] == close(expected)


@pytest.mark.parametrize("release", ["0.16.1", MEGATRON_CORE[-1]])
def test_ranks_of_the_distributed_optimizer_agree(release: str) -> None:
    ranks = two_processes(release, "dp")
    assert len(ranks[0]) == 3
    for kind in ranks[0]:
        assert ranks[0][kind] == ranks[1][kind]  # the weights too
        joint, apart = ranks[0][kind]["joint"], ranks[0][kind]["apart"]
        assert apart["mtp_norms"] == close(norms(apart, "mtp"))
        assert apart["norms"] == close(norms(apart, "policy"))
        assert joint["mtp_norms"] == close(norms(joint, "mtp"))
        assert joint["policy"] != apart["policy"]
