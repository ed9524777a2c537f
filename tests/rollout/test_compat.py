"""verl's own server starts on the newest SGLang, and verl's own client talks to it: with the plugin, and as released.

Real: verl's server and HTTP client, SGLang's arguments, tokenizer manager and HTTP app. The scheduler has no model.
"""

from __future__ import annotations

import time

import pytest

from .conftest import StartHost
from .host import GRACE_S, Host, ScenarioError
from .stacks import LATEST, OLDER_VERL, PINNED

NEWEST = (*OLDER_VERL, LATEST)
TOKENS = [0, 1, 2, 3]
#: verl's uses of what no SGLang of these has: behind a question for the version, in router replay, in disaggregation.
EVERYWHERE = {
    "async_sglang_server: ServerArgs(disaggregation_decode_tp)",
    "async_sglang_server: sglang.srt.entrypoints.http_server._launch_subprocesses",
    "async_sglang_server: sglang.srt.layers.moe.routed_experts_capturer.extract_routed_experts_from_meta_info",
}
LORA = "sglang_rollout: LoadLoRAAdapterFromTensorsReqInput(serialized_tensors)"
DELTA = "sglang_rollout: sglang.srt.model_executor.model_runner.LocalSerializedTensor"
#: By release of verl: LoRA adapters up to 0.9.0, sparse updates in 0.9.0; 0.9.1 looks for the latter elsewhere too.
OWN = {"0.8.0": {LORA}, "0.9.0": {LORA, DELTA}, "0.9.1": {DELTA}}


@pytest.fixture(scope="module", params=NEWEST, ids=str)
def host(request: pytest.FixtureRequest, start_host: StartHost) -> Host:
    return start_host(request.param, "tests.rollout.compat")


def test_as_released_the_server_does_not_start_and_the_client_cannot_be_made(host: Host) -> None:
    found = host.play("as_released")
    assert found["server"] == "TypeError: must be called with a dataclass type or instance"
    assert found["client"].startswith("TypeError: Can't instantiate abstract class AsyncHttpServerAdapter")


def test_both_are_mended(host: Host) -> None:
    found = host.play("decisions")
    assert len(found) == 8
    assert set(found.values()) == {"applied"}


@pytest.mark.parametrize(("mode", "backup"), [("STANDALONE", False), ("COLOCATED", True), ("HYBRID", True)])
def test_the_server_is_asked_for_what_verl_asks_of_a_server_it_knows(host: Host, mode: str, backup: bool) -> None:
    """Without the list of its arguments, weights that are released in a hybrid job would not come back."""
    found = host.play("arguments", mode=mode)
    # verl 0.8.0 asks for it of colocated servers alone.
    assert found["enable_weights_cpu_backup"] is (backup and (mode, host.stack.verl) != ("HYBRID", "0.8.0"))
    assert (found["enable_draft_weights_cpu_backup"], found["speculative_algorithm"]) == (False, None)
    assert found["tokens"] == TOKENS


def test_a_server_that_drafts_keeps_both_models_weights(host: Host) -> None:
    found = host.play("arguments", mode="HYBRID", mtp=True)
    assert (found["enable_weights_cpu_backup"], found["enable_draft_weights_cpu_backup"]) == (True, True)
    assert found["speculative_algorithm"] == "EAGLE"


def test_the_client_opens_and_ends_sessions(host: Host) -> None:
    found = host.play("client")
    assert (found["begin"], found["end"]) == ("", "")
    for again in ("begin again", "end again"):  # SGLang's answer reaches the caller
        assert found[again].startswith("ClientResponseError: 400"), found[again]
    assert [name for name in found["messages"] if "WeightUpdate" in name] == [
        *["BeginWeightUpdateReqInput"] * 2,
        *["EndWeightUpdateReqInput"] * 2,
    ]
    assert found["tokens"] == TOKENS


def test_all_else_that_verl_asks_for_by_name_is_there(host: Host) -> None:
    assert set(host.play("missing")) == EVERYWHERE | OWN[host.stack.verl]


def test_the_rust_server_is_refused_in_one_sentence(host: Host) -> None:
    error = host.play("rust")
    assert error.startswith("UnsupportedError: verl-mtp-plugin: found SGLANG_RUST_SERVER")


def test_where_upstreams_two_fit_nothing_is_changed(start_host: StartHost) -> None:
    found = start_host(PINNED[-1], "tests.rollout.compat").play("decisions")
    assert len(found) == 8
    assert set(found.values()) == {"not_needed"}


# -- what the tests stand on -----------------------------------------------------------------------------------------


def test_a_scheduler_that_dies_ends_its_scenario_with_its_traceback(start_host: StartHost) -> None:
    begin = time.monotonic()
    with pytest.raises(ScenarioError, match="it waits for a scheduler that died") as caught:
        start_host(PINNED[-1], "tests.rollout.compat").play("dies")
    assert "asked to die at generate" in str(caught.value)
    assert time.monotonic() - begin < GRACE_S + 30


def test_a_process_that_ends_ends_its_scenario(start_host: StartHost) -> None:
    """The last test of this process."""
    begin = time.monotonic()
    with pytest.raises(ScenarioError, match="its process ended with code 7"):
        start_host(PINNED[-1], "tests.rollout.compat").play("ends")
    assert time.monotonic() - begin < 10
