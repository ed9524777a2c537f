"""What is refused before a server starts, from the arguments of its engine alone. On servers: :mod:`..test_guards`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from verl_mtp_plugin import runtime
from verl_mtp_plugin.errors import PatchRequiredError, UnsupportedError
from verl_mtp_plugin.rollout.sglang import capturers, refusals
from verl_mtp_plugin.settings import Settings


@pytest.fixture
def required(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The patches that were asked for; all are in place."""
    asked: list[str] = []
    monkeypatch.setattr(runtime, "require", asked.append)
    monkeypatch.setattr("importlib.import_module", lambda name, package=None: None)
    return asked


@pytest.fixture
def retracting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "settings", lambda: Settings(sync_requests="retract"))


def arguments(**given: Any) -> Any:
    return SimpleNamespace(**{"speculative_algorithm": "EAGLE", "speculative_eagle_topk": 1, **given})


def test_the_arguments_reach_verls_own_function(required: list[str]) -> None:
    given = arguments()
    assert refusals.set_envs_and_config(lambda server_args: [server_args], given) == [given]
    assert required == []  # nothing is recorded


@pytest.mark.parametrize("argument", capturers.INSTALL)
def test_what_is_recorded_beside_a_drafter_needs_its_patches(required: list[str], argument: str) -> None:
    refusals.check(arguments(**{argument: True}))
    assert required == [capturers.INSTALL[argument], capturers.FORWARD]


@pytest.mark.parametrize("algorithm", [None, "NGRAM"])
def test_nothing_is_needed_without_a_draft_model(required: list[str], algorithm: str | None) -> None:
    refusals.check(arguments(speculative_algorithm=algorithm, enable_return_routed_experts=True))
    assert required == []


def test_a_patch_that_is_not_in_place_is_an_error_before_the_start(
    required: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(patch_id: str) -> None:
        raise PatchRequiredError(found=f"{patch_id} unsupported", expected="", advice="")

    monkeypatch.setattr(runtime, "require", missing)
    with pytest.raises(PatchRequiredError, match="enable_rollout_routing_replay") as caught:
        refusals.set_envs_and_config(lambda server_args: 1 / 0, arguments(enable_return_routed_experts=True))
    assert caught.value.found.endswith("rollout.sglang.capturers.experts unsupported")


@pytest.mark.parametrize(
    ("given", "moved"),
    [
        ({"speculative_eagle_topk": None}, False),
        ({"speculative_eagle_topk": 1, "page_size": 64}, False),
        ({"speculative_eagle_topk": 4, "page_size": 1, "disable_overlap_schedule": True}, False),
        ({"speculative_eagle_topk": 4, "page_size": 1, "disable_overlap_schedule": False}, True),
        ({"speculative_eagle_topk": 4, "page_size": 64, "disable_overlap_schedule": True}, True),
    ],
)
def test_a_tree_of_drafts_whose_accepted_tokens_move_is_refused(
    required: list[str], given: dict[str, Any], moved: bool
) -> None:
    refusals.check(arguments(**given))  # nothing is recorded: whoever moves, loses nothing
    server_args = arguments(enable_return_routed_experts=True, **given)
    if moved:
        with pytest.raises(UnsupportedError, match="speculative_eagle_topk=4"):
            refusals.check(server_args)
    else:
        refusals.check(server_args)


def test_moved_experts_of_a_drafter_are_warned_of(required: list[str], caplog: pytest.LogCaptureFixture) -> None:
    refusals.check(arguments())
    assert caplog.text == ""
    refusals.check(arguments(enable_eplb=True))
    assert "enable_eplb" in caplog.text


# -- in the scheduler -------------------------------------------------------------------------------------------------


class Capturers:
    """As SGLang's class, with a static method."""

    @staticmethod
    def create(enable: bool) -> Any:
        return SimpleNamespace(host_cache=1) if enable else None


def made(enable: bool) -> Any:
    return refusals.create(vars(Capturers)["create"]).__func__(enable)


def test_a_capturer_is_made_where_nothing_is_retracted() -> None:
    assert isinstance(refusals.create(vars(Capturers)["create"]), staticmethod)
    assert made(True).host_cache == 1


@pytest.mark.usefixtures("retracting")
def test_a_capturer_of_what_would_be_retracted_is_refused() -> None:
    assert made(False) is None
    with pytest.raises(UnsupportedError, match="sync_requests=retract, but the routed experts"):
        made(True)


def loop(self: Any) -> str:
    return "ran"


def test_a_loop_runs_where_nothing_is_retracted() -> None:
    assert refusals.event_loop(loop, SimpleNamespace(_engine_paused=False)) == "ran"


@pytest.mark.usefixtures("retracting")
def test_a_loop_that_ignores_the_pause_is_refused_as_it_starts() -> None:
    with pytest.raises(UnsupportedError, match="SGLang's loop goes on while the engine is paused"):
        refusals.event_loop(loop, SimpleNamespace(_engine_paused=False))
