"""Settings, the report, and the comparison of processes."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest

from verl_mtp_plugin.errors import SettingsError
from verl_mtp_plugin.job.cluster import compare_through
from verl_mtp_plugin.patching import Decision
from verl_mtp_plugin.patching.report import PatchRecord, PatchReport
from verl_mtp_plugin.settings import MODE_KEY, VARIABLES, Mode, Settings


@pytest.mark.parametrize(
    ("text", "mode"),
    [("", Mode.AUTO), ("auto", Mode.AUTO), (" STRICT ", Mode.STRICT), ("off", Mode.OFF)],
)
def test_mode_from_the_environment(text: str, mode: Mode) -> None:
    assert Settings.from_environment({"VERL_MTP_PLUGIN": text}).mode is mode


def test_default_mode_is_auto() -> None:
    assert Settings.from_environment({}) == Settings(Mode.AUTO, "default")


def test_unknown_mode() -> None:
    with pytest.raises(SettingsError, match=r"VERL_MTP_PLUGIN='full'; expected one of auto, strict, off"):
        Settings.from_environment({"VERL_MTP_PLUGIN": "full"})


def test_options_from_the_environment() -> None:
    environ = {
        "VERL_MTP_PLUGIN": "strict",
        "VERL_MTP_PLUGIN_LOSS": "Soft_Cross_Entropy",
        "VERL_MTP_PLUGIN_LOSS_CHUNK_TOKENS": "512",
        "VERL_MTP_PLUGIN_CLIP_GRAD": "joint",
        "VERL_MTP_PLUGIN_MISSING_WEIGHTS": "Random",
        "VERL_MTP_PLUGIN_SYNC_REQUESTS": "Retract",
        "VERL_MTP_PLUGIN_SYNC_DRAIN_TIMEOUT_S": "7.5",
        "VERL_MTP_PLUGIN_SYNC_CONTROL_TIMEOUT_S": "8",
        "VERL_MTP_PLUGIN_SYNC_TRANSFER_TIMEOUT_S": "90",
        "VERL_MTP_PLUGIN_SYNC_RETRIES": "0",
        "VERL_MTP_PLUGIN_CHECK_DRAFTER": "False",
    }
    settings = Settings.from_environment(environ)
    assert settings == Settings(
        Mode.STRICT,
        "VERL_MTP_PLUGIN",
        "soft_cross_entropy",
        512,
        "joint",
        "random",
        "retract",
        7.5,
        8.0,
        90.0,
        0,
        False,
    )
    assert settings.options == {
        "loss": "soft_cross_entropy",
        "loss_chunk_tokens": "512",
        "clip_grad": "joint",
        "missing_weights": "random",
        "sync_requests": "retract",
        "sync_drain_timeout_s": "7.5",
        "sync_control_timeout_s": "8.0",
        "sync_transfer_timeout_s": "90.0",
        "sync_retries": "0",
        "check_drafter": "False",
    }
    assert set(environ) == set(VARIABLES)
    assert Settings().options == {}


def test_config_over_environment() -> None:
    base = Settings(Mode.AUTO, "default", "total_variation", 512)
    assert base.with_config("strict") == Settings(Mode.STRICT, MODE_KEY, "total_variation", 512)
    assert base.with_config(False).mode is Mode.OFF  # YAML 1.1 reads a bare off as False
    changed = base.with_config({"loss": "cross_entropy", "loss_chunk_tokens": None, "clip_grad": 2})
    assert changed == Settings(Mode.AUTO, "default", "cross_entropy", None, 2.0)
    assert base.with_config({"missing_weights": "random"}).missing_weights == "random"
    assert base.missing_weights == "error"
    assert base.with_config({"mode": "strict"}) == Settings(Mode.STRICT, MODE_KEY, "total_variation", 512)


@pytest.mark.parametrize(
    ("mode", "check", "wanted"),
    [(Mode.AUTO, "auto", False), (Mode.STRICT, "auto", True), (Mode.AUTO, True, True), (Mode.STRICT, "false", False)],
)
def test_the_drafter_is_checked_in_strict_mode_or_as_asked(mode: Mode, check: str | bool, wanted: bool) -> None:
    assert Settings(mode).with_config({"check_drafter": check}).checks_drafter is wanted


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"loss": "kl"}, "plugin.loss='kl'; expected one of cross_entropy, soft_cross_entropy, total_variation"),
        ({"loss_chunk_tokens": 0}, "plugin.loss_chunk_tokens=0; expected a number of tokens, at least 1"),
        ({"loss_chunk_tokens": "many"}, "plugin.loss_chunk_tokens='many'; expected a number of tokens"),
        ({"clip_grad": -1}, "plugin.clip_grad=-1; expected a positive number, auto, or joint"),
        ({"clip_grad": "nan"}, "plugin.clip_grad='nan'; expected a positive number"),
        ({"missing_weights": True}, "plugin.missing_weights=True; expected one of error, random"),
        ({"mode": "full"}, "plugin.mode='full'; expected one of auto, strict, off"),
        (
            {"chunk": 1},
            "plugin.chunk; expected one of mode, loss, loss_chunk_tokens, clip_grad, missing_weights, sync_",
        ),
        ({"sync_requests": "keep"}, "plugin.sync_requests='keep'; expected one of abort, retract"),
        ({"sync_drain_timeout_s": 0}, "plugin.sync_drain_timeout_s=0; expected a positive number of seconds"),
        ({"sync_transfer_timeout_s": "inf"}, "plugin.sync_transfer_timeout_s='inf'; expected a positive number"),
        ({"sync_retries": -1}, "plugin.sync_retries=-1; expected a number of further attempts, at least 0"),
        ({"sync_retries": 1.5}, "plugin.sync_retries=1.5; expected a number of further attempts"),
        ({"check_drafter": "maybe"}, "plugin.check_drafter='maybe'; expected one of auto, true, false"),
        ({"los": "kl"}, "Correct the key or leave it out (the nearest is loss)."),
    ],
)
def test_what_the_config_must_not_hold(value: Any, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings().with_config(value)
    assert message in str(caught.value)


def record(id: str, decision: Decision) -> PatchRecord:
    return PatchRecord(id, id, decision, "", "reason", "module:name", "upstream", True)


RECORDS = (record("a", Decision.APPLIED), record("b", Decision.ARMED))
REPORT = PatchReport("0.1.0", "auto", True, {"verl": "0.9.1", "sglang": None}, RECORDS)


def test_report_as_json_and_as_a_line() -> None:
    data = json.loads(REPORT.to_json())
    assert data["patches"][0] == {
        "id": "a", "patch_set": "a", "decision": "applied", "detail": "", "reason": "reason", "target": "module:name",
        "upstream": "upstream", "critical": True, "package": "",
    }  # fmt: skip
    assert REPORT.banner() == "verl-mtp-plugin 0.1.0 (auto) applied: a; armed: 1"


def test_a_line_at_the_start_of_training_counts_sets_and_names_what_is_not_applied() -> None:
    def part(patch_set: str, id: str, decision: Decision, detail: str = "", package: str = "") -> PatchRecord:
        return replace(record(id, decision), patch_set=patch_set, detail=detail, package=package)

    records = (
        part("a", "a.1", Decision.APPLIED),
        part("a", "a.2", Decision.NOT_NEEDED),
        part("b", "b", Decision.NOT_NEEDED),
        part("c", "c", Decision.ARMED, "waits for sglang"),
        part("d", "d.1", Decision.UNSUPPORTED, "not applied, because d.2 of the same set is failed"),
        part("d", "d.2", Decision.FAILED, "TypeError: no"),
        part("e", "a.1", Decision.CONFLICT, "the id 'a.1' is taken", "plugin 'lab' from lab_hooks (lab 1.0)"),
    )
    assert replace(REPORT, patches=records).summary() == (
        "verl-mtp-plugin 0.1.0 at the start of training: 1 applied, 1 not needed, 1 for modules that this process has "
        "not imported; 2 not applied: d.2 is failed (TypeError: no); a.1 of plugin 'lab' from lab_hooks (lab 1.0) is "
        "conflict (the id 'a.1' is taken)"
    )
    for decision in Decision:  # each is counted or named
        assert str(decision).split("_")[0] in replace(
            REPORT, patches=(record("x", decision),)
        ).summary() or decision in (
            Decision.ARMED,
            Decision.SKIPPED,
            Decision.REVERTED,
        )
    assert REPORT.summary().endswith("1 applied, 1 for modules that this process has not imported; none failed")


def test_digest_tells_versions_and_decisions_apart_but_not_roles() -> None:
    digest = REPORT.digest()
    assert len(digest) == 12
    assert replace(REPORT, patches=REPORT.patches[:1]).digest() == digest  # b waits: says nothing about the node
    assert replace(REPORT, versions={"verl": "0.9.0", "sglang": None}).digest() != digest
    assert replace(REPORT, patches=(record("a", Decision.FAILED),)).digest() != digest
    assert replace(REPORT, mode="strict").digest() != digest
    assert replace(REPORT, version="0.2.0").digest() != digest
    assert replace(REPORT, options={"loss": "total_variation"}).digest() != digest


class DictStore:
    """The four calls of a torch.distributed store that are used; tests/stack has the real one."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def set(self, key: str, value: str) -> None:
        self.data[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.data[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.data for key in keys)

    def add(self, key: str, amount: int) -> int:
        with self.lock:
            value = int(self.data.get(key, b"0")) + amount
            self.data[key] = str(value).encode()
            return value


def compare(reports: list[PatchReport | None], *, strict: bool = False) -> list[str]:
    """What each rank is told; None is a rank without the plugin."""
    store, told = DictStore(), [""] * len(reports)

    def rank(number: int, report: PatchReport) -> None:
        told[number] = compare_through(store, number, len(reports), report, strict=strict, timeout_s=0.5)

    threads = [threading.Thread(target=rank, args=(i, r)) for i, r in enumerate(reports) if r is not None]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return told


def test_even_processes_say_nothing() -> None:
    assert compare([REPORT] * 4) == [""] * 4
    assert compare([REPORT] * 4, strict=True) == [""] * 4


OLDER = replace(REPORT, versions={"verl": "0.9.0", "sglang": None})


def test_one_warning_names_the_rank_the_node_and_the_version() -> None:
    told = [message for message in compare([REPORT, REPORT, OLDER]) if message]
    assert len(told) == 1
    assert "rank 2 on " in told[0]
    assert told[0].endswith("has verl 0.9.0 (others 0.9.1)")


def test_strict_tells_every_rank() -> None:
    told = compare([REPORT, REPORT, OLDER], strict=True)
    assert len(set(told)) == 1
    assert "verl 0.9.0 (others 0.9.1)" in told[0]


def test_other_decisions_are_told_apart() -> None:
    other = replace(REPORT, patches=(record("a", Decision.UNSUPPORTED),))
    (told,) = [message for message in compare([REPORT, REPORT, other]) if message]
    assert "rank 2" in told
    assert "other patch decisions" in told


def test_a_rank_without_the_plugin_does_not_hang_the_others() -> None:
    told: list[Any] = [message for message in compare([None, REPORT, REPORT]) if message]
    assert told == ["rank(s) 0 did not answer within 0.5 s: the plugin may be missing there"]
