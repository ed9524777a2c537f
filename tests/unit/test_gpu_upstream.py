"""What benchmarks/gpu/upstream reads from logs, and what it puts around upstream's scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu.upstream import harvest, process, recipe, scripts, store, summary

LOG = (
    "    0.10 + python3 -m verl.trainer.main_ppo\n"
    "    5.00 \x1b[36m(TaskRunner pid=7)\x1b[0m INFO:x:verl-mtp-plugin 0.1.0 (auto) applied: a\n"
    "    5.10 \x1b[36m(WorkerDict pid=8)\x1b[0m INFO:x:verl-mtp-plugin 0.1.0 (auto) applied: a\n"
    "    5.20 /opt/verl-mtp-plugin/lib/x.py:1: UserWarning: not the plugin\n"
    "   20.00 \x1b[36m(Server pid=9)\x1b[0m [2026-11-21 10:00:00] Decode batch, #running-req: 8, #token: 99, "
    "token usage: 0.01, accept len: 2.00, accept rate: 0.50, cuda graph: True, gen throughput (token/s): 160.00, "
    "#queue-req: 0\n"
    "   21.00 \x1b[36m(TaskRunner pid=7)\x1b[0m step:1 - actor/lr:1.0\n"
    "   22.00 \x1b[36m(Server pid=9)\x1b[0m [2026-11-21 10:00:02] Decode batch, #running-req: 4, #token: 50, "
    "token usage: 0.01, accept len: 3.00, accept rate: 1.00, cuda graph: False, gen throughput (token/s): 120.00, "
    "#queue-req: 0\n"
    "   23.00 \x1b[36m(Server pid=9)\x1b[0m [2026-11-21 10:00:03] Decode batch, #running-req: 1, #token: 50, "
    "token usage: 0.01, accept len: 3.00, accept rate: 1.00, cuda graph: True, gen throughput (token/s): 30.00, "
    "#queue-req: 0\n"
    "   24.00 ValueError: broken\n"
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "log.txt"
    file.write_text(LOG)
    return file


def test_decode_lines(log: Path) -> None:
    found = harvest.decode_lines(log)
    assert [(line["t"], line["running"], line["length"], line["rate"]) for line in found] == [
        (20.0, 8, 2.0, 0.5),
        (22.0, 4, 3.0, 1.0),
        (23.0, 1, 3.0, 1.0),
    ]
    summed = harvest.decode_summary(found)
    # 16 tokens in 0.1 s, 12 in 0.1 s, 3 in 0.1 s; of 13 requests 8 had a rate of 0.5
    assert summed["tokens_per_s"] == pytest.approx(31 / 0.3, rel=1e-4)
    assert summed["busy_tokens_per_s"] == 160
    assert summed["accept_rate"] == pytest.approx(9 / 13, rel=1e-4)
    assert summed["accept_length"] == pytest.approx((8 * 2 + 5 * 3) / 13, rel=1e-4)
    assert summed["in_cuda_graphs"] == pytest.approx(2 / 3, rel=1e-4)
    assert harvest.decode_summary(found, after_s=21.0)["lines"] == 2


def test_a_line_without_speculation(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text(
        "1.0 (S pid=1) Decode batch, #running-req: 2, #token: 9, token usage: 0.00, cuda graph: True, "
        "gen throughput (token/s): 50.00, #queue-req: 0\n"
    )
    assert harvest.decode_summary(harvest.decode_lines(file)) == {
        "lines": 1, "most_running": 2, "mean_running": 2, "tokens_per_s": 50, "busy_tokens_per_s": 50,
        "in_cuda_graphs": 1,
    }  # fmt: skip


def test_steps_of_the_log(log: Path) -> None:
    [first] = harvest.per_step(harvest.decode_lines(log), log)
    assert (first["step"], first["lines"]) == (1, 1)


def test_what_the_plugin_said(log: Path) -> None:
    assert harvest.plugin_lines(log) == {"verl-mtp-plugin 0.1.0 (auto) applied: a": 2}
    assert harvest.errors(log) == ["ValueError: broken"]
    assert harvest.milestones(log) == {"first_decode": 20.0, "first_step": 21.0}


def test_metrics_in_columns(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = [(1, {"timing_s/gen": 2.0, "other": 1}), (1, {"weight_sync/pause_s": 0.5}), (2, {"timing_s/gen": 4.0})]
    text = "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in rows)
    file.write_text(text + '{"step": 3, "da')  # cut off
    columns = harvest.steps(file)
    assert columns == {"step": [1.0, 2.0], "timing_s/gen": [2.0, 4.0], "weight_sync/pause_s": [0.5, None]}
    assert summary.typical({"steps": columns}, "timing_s/gen") == 4.0
    assert summary.typical({"steps": columns}, "weight_sync/pause_s") == 0.5
    assert harvest.steps(tmp_path / "none") == {}


def test_memory_keeps_its_extremes() -> None:
    samples = [(float(t), 100 + t % 7) for t in range(5000)]
    samples[1234] = (1234.0, 9999)
    kept = harvest.thinned(samples, most=100)
    assert len(kept) <= 100
    assert (1234.0, 9999) in kept
    assert kept == sorted(kept)


def test_results_are_kept_beside_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "kind.json"
    store.add(file, {"kind": "kind"}, "one", {"numbers": [1, 2], "pairs": [[1, 2], [3, 4]], "text": "a [b] c"})
    store.add(file, {"kind": "kind"}, "two", {"numbers": []})
    document = store.load(file)
    assert list(document["variants"]) == ["one", "two"]
    assert document["variants"]["one"] == {"numbers": [1, 2], "pairs": [[1, 2], [3, 4]], "text": "a [b] c"}
    assert '"numbers": [1, 2]' in file.read_text()


def test_a_script_is_copied_only_where_a_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.sh"
    file.write_text("run \\\n    a.megatron.param_offload=True \\\n    a.megatron.grad_offload=True \\\n    b=1\n")
    script = scripts.find("run.sh", tmp_path)
    monkeypatch.setattr(scripts, "accepted_options", lambda: "param_offload: False\ngrad_offload: False\n")
    assert scripts.trimmed(script, tmp_path / "copy") is script
    monkeypatch.setattr(scripts, "accepted_options", lambda: "\nparam_offload: False\n")
    copy = scripts.trimmed(script, tmp_path / "copy")
    assert copy.without == ("a.megatron.grad_offload=True \\",)
    assert copy.path.read_text() == "run \\\n    a.megatron.param_offload=True \\\n    b=1\n"
    assert copy.sha256 == script.sha256
    with pytest.raises(scripts.MissingScriptError, match="give --examples"):
        scripts.find("other.sh", tmp_path)


def test_a_run_that_hangs_is_ended(tmp_path: Path) -> None:
    def run(code: str, limit_s: float, silence_s: float) -> process.Finished:
        return process.run(["bash", "-c", code], {}, tmp_path, tmp_path / "log.txt", [], limit_s, silence_s)

    done = run("echo said; exit 3", 20, 20)
    assert (done.status, done.timed_out) == (3, False)
    assert [text for _, _, text in harvest.lines(done.log)] == ["said"]
    for limit_s, silence_s in ((0.5, 20), (20, 0.5)):
        done = run("echo said; sleep 60", limit_s, silence_s)
        assert done.timed_out
        assert done.seconds < 15


def test_overrides() -> None:
    sizes = recipe.Sizes()
    off = recipe.Variant("off", "off", plugin="off", mtp=False)
    assert set(recipe.of_variant(off, sizes).values()) == {False}
    on = recipe.of_variant(recipe.Variant("on", "on", overrides={"x": 1}), sizes)
    assert on[f"{recipe.MTP}.speculative_num_draft_tokens"] == sizes.draft_steps + 1
    assert recipe.as_arguments(on)[-1] == "x=1"
    assert recipe.graph_sizes(64) == "[1,8,32,64]"
    files = recipe.Files(Path("/a/model"), Path("/a/data"), Path("/a/reward.py"), Path("/w/kind/one"))
    assert files.named("p=/a/model/x q=/w/kind/one/y r=/w/kind/z") == "p=$MODEL/x q=$WORK/y r=$WORK/../z"
