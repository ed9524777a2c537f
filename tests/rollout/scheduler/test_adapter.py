"""verl's own ``ServerAdapter.update_weights`` in front of SGLang's own handlers: sessions, routes, the drafter."""

from __future__ import annotations

from typing import Any

import pytest

from .releases import ADAPTERS, LATEST, PIN, ask

SESSIONS = ("0.5.21", "0.5.22", "0.5.23")
STACKS = pytest.mark.parametrize(("verl", "sglang", "drafter"), ADAPTERS)
BEGIN, END, DESCRIBE, DIGEST = "begin_weight_update", "end_weight_update", "verl_mtp.describe", "verl_mtp.digest"
STALE = (
    "WeightSyncError: verl-mtp-plugin: found replica 3: 1 of {number} compared parameters of the drafter do not hold "
    "what the trainer sent: {parameter} (sent as {sent}); expected a drafter with the trainer's MTP weights"
)
SENT = "model.mtp_layers.0.input_proj.weight"
NAMES = {
    "mimo": {"number": 11, "parameter": "model.input_proj.weight", "sent": SENT},
    "plain": {"number": 1, "parameter": "input_proj.weight", "sent": SENT},
}


def of(verl: str, sglang: str, drafter: str) -> Any:
    return ask("adapter_worker", drafter, verl=verl, sglang=sglang)


def messages(sglang: str, *, digest: bool = False) -> list[str]:
    """The calls of one sync."""
    inner = ["update", "flush"]
    inner = [BEGIN, *inner, END] if sglang in SESSIONS else inner
    return [*inner, DIGEST] if digest else inner


@STACKS
def test_without_the_plugin_no_sync_with_a_drafter_works(verl: str, sglang: str, drafter: str) -> None:
    """HTTP status 400 without a session; before, the second opening of a handle."""
    expected = "HttpError: 400" if sglang in SESSIONS else "EOFError"
    assert all(result.startswith(expected) for result in of(verl, sglang, drafter)["bare"]["results"])


@STACKS
def test_two_syncs(verl: str, sglang: str, drafter: str) -> None:
    """From an asynchronous stream (checkpoint engine) and a synchronous one (hybrid engine)."""
    found = of(verl, sglang, drafter)
    assert found["patches"]["rollout.sglang.adapter"] == "applied"
    for mode, digest in (("unchecked", False), ("good", True)):
        assert found[mode]["results"] == ["ok", "ok"]
        assert found[mode]["calls"] == [DESCRIBE, *messages(sglang, digest=digest), *messages(sglang, digest=digest)]
        assert found[mode]["steps"] == [1, 2]
        assert found[mode]["engine"] is True  # the adapter has its client back


@STACKS
def test_one_number_that_differs_is_found_and_named(verl: str, sglang: str, drafter: str) -> None:
    good, bad, mended = of(verl, sglang, drafter)["stale"]["results"]
    assert bad.startswith(STALE.format(**NAMES[drafter]))
    assert (good, mended) == ("ok", "ok")


@STACKS
def test_a_tensor_that_the_loader_passes_over_is_found_in_the_first_sync(verl: str, sglang: str, drafter: str) -> None:
    (result,) = of(verl, sglang, drafter)["first_sync_skips"]["results"]
    assert result.startswith(STALE.format(**NAMES[drafter]))


UNFED = (
    "WeightSyncError: verl-mtp-plugin: found replica 3: MTP is trained (mtp.enable_train=True), and the trainer sent "
    "none of its tensors (names that begin with model.mtp_layers.); expected a drafter with the trainer's MTP weights"
)
RANDOM = (
    "WeightSyncError: verl-mtp-plugin: found replica 3: the drafter's weights are random: the server has "
    "load_format=dummy, and the trainer sent none of the MTP tensors (names that begin with model.mtp_layers.);"
)
FROZEN = "replica 3: the drafter is frozen: mtp.enable_train=False, the trainer sends no MTP tensor, and "
MODES = pytest.mark.parametrize("mode", ["auto", "strict"])


@MODES
@STACKS
def test_a_trainer_that_trains_mtp_and_does_not_send_it_is_named(
    verl: str, sglang: str, drafter: str, mode: str
) -> None:
    """By names alone, in every mode, once the target has its weights; the session is ended."""
    found = of(verl, sglang, drafter)[f"nothing_sent {mode}"]
    assert all(result.startswith(UNFED) for result in found["results"])
    assert found["calls"] == [DESCRIBE, *messages(sglang), *messages(sglang)]


@STACKS
def test_every_rank_notices(verl: str, sglang: str, drafter: str) -> None:
    """Those without a client too: the others would wait for them."""
    (result,) = of(verl, sglang, drafter)["follower unfed"]["results"]
    assert result.startswith(UNFED)


@MODES
@STACKS
def test_a_frozen_drafter_with_the_checkpoints_weights_is_served_and_said_once(
    verl: str, sglang: str, drafter: str, mode: str
) -> None:
    found = of(verl, sglang, drafter)[f"frozen auto {mode}"]
    assert found["results"] == ["ok", "ok"]
    (line,) = found["said"]
    assert line == f"{FROZEN}the checkpoint's own (load_format=auto) draft as they are"


@MODES
@STACKS
def test_a_frozen_drafter_with_random_weights_is_refused(verl: str, sglang: str, drafter: str, mode: str) -> None:
    found = of(verl, sglang, drafter)[f"frozen dummy {mode}"]
    assert all(result.startswith(RANDOM) for result in found["results"])
    assert found["said"] == []


@STACKS
def test_a_frozen_drafter_of_which_the_server_knows_nothing_is_compared_in_strict_mode(
    verl: str, sglang: str, drafter: str
) -> None:
    found = of(verl, sglang, drafter)
    assert found["frozen None auto"]["results"] == ["ok", "ok"]
    expected = "replica 3: the trainer sent none of the drafter's tensors (names that begin with model.mtp_layers.);"
    assert all(expected in result for result in found["frozen None strict"]["results"])


@STACKS
def test_without_mtp_nobody_asks(verl: str, sglang: str, drafter: str) -> None:
    found = of(verl, sglang, drafter)["nothing_sent off"]
    assert found["results"] == ["ok", "ok"]
    assert found["calls"] == [*messages(sglang), *messages(sglang)]
    assert found["said"] == []


def test_where_nobody_has_described_the_family_no_more_is_said_than_is_known() -> None:
    """The trunk has a tensor of that name and size too. Which of them it is, the first sync tells."""
    found = of(*LATEST)["nobodys"]
    assert found["first_sync_skips"]["results"] == ["ok"]
    good, bad, mended = found["stale"]["results"]
    assert (good, mended) == ("ok", "ok")
    assert bad.startswith(STALE.format(**NAMES["plain"]))


def test_a_worker_that_leaves_out_the_drafter_is_refused_before_anything_is_sent() -> None:
    found = of(*PIN)["left_out"]
    assert found["calls"] == [DESCRIBE]
    assert found["target"] == []
    assert "SGLang's DFlashWorker would leave out the draft model's weights" in found["results"][0]


@STACKS
def test_a_scheduler_without_the_plugin(verl: str, sglang: str, drafter: str) -> None:
    found = of(verl, sglang, drafter)["without_plugin"]
    assert all("the plugin is not active there" in result for result in found["strict"]["results"])
    assert found["strict"]["calls"] == [DESCRIBE, DESCRIBE]
    assert found["auto"]["results"] == ["ok", "ok"]
    assert found["auto"]["calls"] == [DESCRIBE, *messages(sglang), *messages(sglang)]


@STACKS
def test_a_session_that_was_left_open_is_ended_first(verl: str, sglang: str, drafter: str) -> None:
    found = of(verl, sglang, drafter)["left_open"]
    first = [BEGIN, END] if sglang in SESSIONS else []
    assert found["results"] == ["ok", "ok"]
    assert found["calls"] == [*first, *messages(sglang), *messages(sglang)]
    assert found["open"] is False


@STACKS
def test_the_session_of_an_update_that_fails_is_ended(verl: str, sglang: str, drafter: str) -> None:
    found = of(verl, sglang, drafter)["update_fails"]
    failed = [BEGIN, "update", END] if sglang in SESSIONS else ["update"]
    assert found["results"] == ["HttpError: 400, message='Bad Request', url=/update", "ok"]
    assert found["calls"] == [*failed, *messages(sglang)]
    assert found["open"] is False


def test_a_session_that_cannot_be_opened_is_an_error() -> None:
    found = of(*LATEST)["begin_fails"]
    assert "replica 3: begin_weight_update failed (HttpError: 400" in found["results"][0]
    assert found["results"][1] == "ok"
    assert "update" not in found["calls"][:3]


def test_a_session_that_was_ended_before_its_time_is_no_error() -> None:
    """verl sends a request again when the answer takes too long; the first one may have ended the session."""
    assert of(*LATEST)["ended_before"]["results"] == ["ok", "ok"]


@STACKS
def test_ranks_without_a_client_only_take_part(verl: str, sglang: str, drafter: str) -> None:
    found = of(verl, sglang, drafter)["follower"]
    assert (found["results"], found["gathered"]) == (["ok"], 42 if drafter == "mimo" else 3)


@pytest.mark.parametrize(("verl", "sglang", "drafter"), [ADAPTERS[1], ADAPTERS[3], ADAPTERS[-1]])
def test_a_lora_adapter_needs_neither_session_nor_check(verl: str, sglang: str, drafter: str) -> None:
    found = of(verl, sglang, drafter)["lora"]
    assert (found["results"], found["calls"]) == (["ok"], [DESCRIBE, "lora", "flush"])
