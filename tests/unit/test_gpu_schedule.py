"""The scheduler of the GPU proof, on commands of a shell."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks.gpu.proof.jobs import Setting, jobs
from benchmarks.gpu.proof.schedule import Job, Outcome, Schedule, chosen

NOTE = 'echo "$CUDA_VISIBLE_DEVICES"'


def run(tmp_path: Path, *jobs: Job, gpus: tuple[int, ...] = (4, 5), limit_s: float = 30.0) -> dict[str, Outcome]:
    return Schedule(jobs, gpus, limit_s, tmp_path, lambda text: None).run()


def end(outcome: Outcome) -> float:
    return outcome.began_s + outcome.seconds


def test_jobs_that_fit_run_side_by_side_on_gpus_of_their_own(tmp_path: Path) -> None:
    one, two = Job("one", f"{NOTE}; sleep 0.8", 1, 1), Job("two", f"{NOTE}; sleep 0.8", 1, 1)
    found = run(tmp_path, one, two, Job("both", NOTE, 2, 1))
    assert {name: outcome.status for name, outcome in found.items()} == {"one": 0, "two": 0, "both": 0}
    seen = {name: (tmp_path / f"{name}.txt").read_text().strip() for name in found}
    assert seen == {"one": "4", "two": "5", "both": "4,5"}
    assert found["two"].began_s < end(found["one"])
    assert found["both"].began_s >= max(end(found["one"]), end(found["two"])) - 0.2


def test_a_job_that_must_wait_for_gpus_lets_a_smaller_one_go_first(tmp_path: Path) -> None:
    long = Job("long", "sleep 1", 1, 1)
    found = run(tmp_path, long, Job("both", "true", 2, 1), Job("small", "true", 1, 1))
    assert found["small"].began_s < found["both"].began_s


def test_what_comes_after_a_failure_is_not_begun(tmp_path: Path) -> None:
    first, next_one = Job("first", "exit 3", 0, 1), Job("next", "true", 1, 1, after=("first",))
    found = run(tmp_path, first, next_one, Job("last", "true", 1, 1, after=("next",)))
    assert found["first"].status == 3
    assert (found["next"].status, found["next"].why) == (None, "first did not end well")
    assert (found["last"].status, found["last"].why) == (None, "next did not end well")


def test_time_that_is_up_ends_a_job_and_its_children(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"while true; do touch {alive}; sleep 0.1; done"
    found = run(tmp_path, Job("endless", f"({child}) & wait", 1, 1), limit_s=2.0)
    assert found["endless"].why == "no time left"
    assert found["endless"].status != 0
    alive.unlink()
    time.sleep(0.5)
    assert not alive.exists()


def test_a_job_that_would_not_end_in_time_is_not_begun(tmp_path: Path) -> None:
    found = run(tmp_path, Job("long", "true", 1, 60), Job("large", "true", 3, 1), Job("short", "true", 1, 5))
    assert found["long"].why.startswith("needs about 60 s, ")
    assert found["large"].why == "needs 3 GPUs, there are 2"
    assert found["short"].status == 0


def test_a_job_is_told_the_time_it_has(tmp_path: Path) -> None:
    run(tmp_path, Job("told", "echo {left}", 0, 1), limit_s=100.0)
    assert 70 <= int((tmp_path / "told.txt").read_text()) <= 75


def test_what_ended_well_is_not_run_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    done = Job("done", f"echo >> {count}", 0, 1)
    fails = Job("fails", f"echo >> {count}; exit 1", 0, 1)
    for _ in range(2):
        found = run(tmp_path, done, fails)
    assert len(count.read_text().splitlines()) == 3
    assert found["done"].status == 0
    assert json.loads((tmp_path / "jobs.json").read_text())["fails"]["status"] == 1


def test_what_others_wrote_meanwhile_stays(tmp_path: Path) -> None:
    other = tmp_path / "jobs.json"
    writes = f"""echo '{{"theirs": {{"status": 0}}}}' > {other}"""
    run(tmp_path, Job("ours", writes, 0, 1))
    assert {name: found["status"] for name, found in json.loads(other.read_text()).items()} == {"theirs": 0, "ours": 0}


def setting(tmp_path: Path, plain: Path | None = None) -> Setting:
    return Setting(tmp_path, tmp_path, tmp_path, tmp_path, plain, shared=False, rehearse=False)


def test_chosen_jobs_bring_what_they_come_after(tmp_path: Path) -> None:
    names = [job.name for job in chosen(jobs(setting(tmp_path)), ["hybrid-p", "costs"])]
    assert names == ["model", "pretrain", "hybrid-plugin", "costs"]
    with pytest.raises(ValueError, match="found --only hybird; expected beginnings of model, pretrain, "):
        chosen(jobs(setting(tmp_path)), ["hybird"])


def test_variants_without_the_plugin_run_in_an_environment_without_it(tmp_path: Path) -> None:
    found = {job.name: job.command for job in jobs(setting(tmp_path, plain=Path("/plain")))}
    without = {name for name, command in found.items() if "/plain/bin/python -m" in command}
    expected = {f"{script}-{name}" for script in ("hybrid", "fully_async") for name in ("released", "no_mtp")}
    assert without == expected
