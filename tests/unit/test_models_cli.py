"""``verl-mtp models``: the command around the answers. What real bridges answer is tested in tests/bridges."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from verl_mtp_plugin import report, runtime
from verl_mtp_plugin.bridges.ask import Answer
from verl_mtp_plugin.cli import app, models
from verl_mtp_plugin.cli.render_models import render
from verl_mtp_plugin.models import MBRIDGE, MEGATRON_BRIDGE, ModelFamily

ASKED = ModelFamily("Asked", ("AskedForCausalLM",), ("mtp",), sample={"model_type": "asked"})
UNASKED = ModelFamily("Unasked", ("UnaskedForCausalLM",), ("mtp",), since={MBRIDGE: "9.9"})
Answers = Callable[[bool | None], None]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Let mbridge be installed and answer, noisily."""

    def _answers(supported: bool | None) -> None:
        def ask(family: ModelFamily, bridge: str) -> Answer:
            print("noise of an imported package")
            assert report().active  # what the plugin mends must count
            if family is ASKED and bridge == MBRIDGE:
                return Answer(bridge, supported, "said so", mends=("bridge.some_mend",) if supported else ())
            return Answer(bridge, None, "")

        installed = {MBRIDGE: "0.15.1", MEGATRON_BRIDGE: None}
        monkeypatch.setattr(models, "ask", ask)
        monkeypatch.setattr(models, "installed_version", installed.get)
        monkeypatch.setattr(runtime, "models", lambda: [ASKED, UNASKED])

    return _answers


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        app.main(["models", *arguments])
    return int(stopped.value.code or 0)


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    table = json.loads(capsys.readouterr().out)  # nothing but JSON
    return {row["family"]: {name: cell["state"] for name, cell in row["bridges"].items()} for row in table["families"]}


@pytest.mark.parametrize(("supported", "state", "status"), [(True, "yes", 0), (False, "no", 0), (None, "no answer", 1)])
def test_json_and_exit_status(
    answers: Answers, capsys: pytest.CaptureFixture[str], supported: bool | None, state: str, status: int
) -> None:
    answers(supported)
    assert run("--json") == status
    assert states(capsys) == {
        "Asked": {MBRIDGE: state, MEGATRON_BRIDGE: "not installed"},
        "Unasked": {MBRIDGE: "not asked", MEGATRON_BRIDGE: "not installed"},
    }
    assert not report().active  # as it was before


def test_without_any_bridge_nobody_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 1
    found = states(capsys)
    assert found["MiMo"] == {MBRIDGE: "not installed", MEGATRON_BRIDGE: "not installed"}
    assert len(found) == len(runtime.models())


def test_the_table_for_a_person(answers: Answers) -> None:
    answers(True)
    shown = io.StringIO()
    render(models.examine(), Console(file=shown, width=160))
    lines = [line for line in shown.getvalue().splitlines() if "sked" in line]
    asked, unasked = ([cell.strip() for cell in line.strip("│ ").split("│")] for line in lines if "ForCausalLM" in line)
    assert asked[:4] == ["Asked", "AskedForCausalLM", "yes, with bridge.some_mend of this plugin", "not installed"]
    assert unasked == ["Unasked", "UnaskedForCausalLM", "not asked", "not installed", "mbridge 9.9"]


def test_a_reason_is_shown_as_it_is(answers: Answers) -> None:
    answers(False)
    shown = io.StringIO()
    render(models.examine(), Console(file=shown, width=160))
    assert "no: said so" in shown.getvalue()


def test_a_misspelt_mode_is_named_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERL_MTP_PLUGIN", "atuo")
    assert run() == 1
    assert "VERL_MTP_PLUGIN='atuo'" in capsys.readouterr().err


def test_help_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "Exit status: 0" in capsys.readouterr().out


def test_an_unknown_option_is_refused() -> None:
    assert run("--jsno") == 2
