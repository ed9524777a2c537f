"""The kill switch and its options in one process: mistakes, and several MtpConfigs. verl is a package made for it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verl_mtp_plugin.settings import OPTION_VARIABLES

from .conftest import Run
from .test_loading import CONFIG

Write = Callable[[str, str], Path]

#: Each row in a process of its own, forked before anything of the plugin has read the environment.
FORKS = """
    import contextlib, io, json, os, sys
    import verl_mtp_plugin.plugins
    for point in verl_mtp_plugin.plugins.BUILTIN:
        point.load()
    rows = json.load(open(sys.argv[1]))
    for name, environ, code in rows:
        sys.stdout.flush()
        read, write = os.pipe()
        if os.fork() == 0:
            said = []
            os.environ.update(environ)
            with contextlib.redirect_stderr(io.StringIO()) as err:
                try:
                    def attempt(call):
                        try:
                            call()
                            return "ok"
                        except BaseException as error:
                            return f"{type(error).__name__}: {error}"
                    def state():
                        from verl_mtp_plugin import runtime
                        return [str(runtime.settings()), runtime.report().active]
                    exec(code, {"say": said.append, "attempt": attempt, "state": state})
                except BaseException as error:
                    said.append(f"failed: {type(error).__name__}: {error}")
            os.write(write, json.dumps([said, err.getvalue()]).encode())
            os._exit(0)
        os.close(write)
        print("=>", json.dumps([name, *json.loads(open(read).read())]))
        os.wait()
"""
Scenarios = dict[str, tuple[dict[str, str], str]]


def play(run: Run, tmp_path: Path, scenarios: Scenarios) -> dict[str, tuple[list[Any], str]]:
    """What each scenario said, and what was logged."""
    rows = [(name, environ, textwrap.dedent(code)) for name, (environ, code) in scenarios.items()]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    done = run(f"import sys; sys.argv = ['', {str(file)!r}]\n{textwrap.dedent(FORKS)}")
    lines = [json.loads(line[3:]) for line in done.stdout.splitlines() if line.startswith("=> ")]
    return {name: (said, logged) for name, said, logged in lines}


@pytest.fixture
def verl(write: Write) -> None:
    for package in ("verl", "verl/workers", "verl/workers/config", "verl/trainer"):
        write(f"{package}/__init__.py", "")
    write("verl/workers/config/model.py", CONFIG)
    runtime_env = "def get_ppo_ray_runtime_env(): return {'env_vars': {}}\n"
    write("verl/trainer/constants_ppo.py", runtime_env)


IMPORT = "import verl, verl_mtp_plugin.autoload as autoload\nfrom verl.workers.config.model import MtpConfig\n"
MISTAKEN = (
    IMPORT
    + """
say(attempt(lambda: MtpConfig(enable=False)))
say(attempt(lambda: MtpConfig(enable=False, plugin={"loss": "total_variation"})))
say(attempt(lambda: MtpConfig(enable=True)))
say(attempt(lambda: MtpConfig(enable=True, plugin="strict")))
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
say(get_ppo_ray_runtime_env()["env_vars"])
for off in ("off", False, 0, {"mode": "off"}, {"mode": False, "los": 1, "clip_grad": "garbage"}):
    say(attempt(lambda: MtpConfig(enable=True, plugin=off)))
    say(state())
autoload.load()
"""
)
#: What is wrong in the environment, and what is said of it.
MISTAKES: dict[str, tuple[str, str]] = {
    **{variable: ("garbage", f"found {variable}='garbage'") for variable in OPTION_VARIABLES.values()},
    "VERL_MTP_PLUGIN": ("atuo", "found VERL_MTP_PLUGIN='atuo'; expected one of auto, strict, off"),
    "VERL_MTP_PLUGIN_LOS": ("total_variation", "or call it VERL_MTP_PLUGIN_LOSS"),
    "VERL_MTP_PLUGN": ("off", "or call it VERL_MTP_PLUGIN."),
}


def test_a_mistake_in_the_environment_ends_a_job_with_mtp_alone(verl: None, run: Run, tmp_path: Path) -> None:
    """Named at once, an error where MTP is on, and nothing at all where the config says off."""
    played = play(run, tmp_path, {name: ({name: value}, MISTAKEN) for name, (value, _) in MISTAKES.items()})
    assert played.keys() == MISTAKES.keys()
    for name, (said, logged) in played.items():
        disabled, disabled_with_options, enabled, strict, forwarded, *off = said
        assert (disabled, disabled_with_options) == ("ok", "ok"), name
        for refused in (enabled, strict):
            assert refused.startswith("SettingsError: verl-mtp-plugin: found")
            assert MISTAKES[name][1] in refused
        assert forwarded[name] == MISTAKES[name][0]  # a mistake is one on all nodes
        assert MISTAKES[name][1] in forwarded["VERL_MTP_PLUGIN_SAID"]  # and they know that it has been said
        assert off == ["ok", ["off", False]] * 5
        assert logged.count(MISTAKES[name][1]) == 1, name  # the plugin was loaded twice


def test_a_mistake_is_said_once_a_job(verl: None, run: Run, tmp_path: Path) -> None:
    first = play(run, tmp_path, {"driver": ({"VERL_MTP_PLUGIN_LOS": "x"}, MISTAKEN)})["driver"][0][4]
    said, logged = play(run, tmp_path, {"worker": (first, MISTAKEN)})["worker"]
    assert "VERL_MTP_PLUGIN_LOS" in said[2]
    assert logged == ""


def test_the_environments_off_wins_over_every_mistake(verl: None, run: Run, tmp_path: Path) -> None:
    code = (
        IMPORT
        + """
say(attempt(lambda: MtpConfig(enable=True)))
say(attempt(lambda: MtpConfig(enable=True, plugin={"mode": "strict", "los": 1})))
say(attempt(lambda: MtpConfig(enable=True, plugin="garbage")))
import verl_mtp_plugin
verl_mtp_plugin.activate("strict")
verl_mtp_plugin.activate({"loss": "garbage"})
say(state())
"""
    )
    environ = {name: value for name, (value, _) in MISTAKES.items()}
    scenarios = {off: ({**environ, "VERL_MTP_PLUGIN": off}, code) for off in ("off", "Off ", "0", "no")}
    for said, logged in play(run, tmp_path, scenarios).values():
        assert (said, logged) == (["ok", "ok", "ok", ["off", False]], "")


def test_options_that_nobody_uses_harm_nothing(verl: None, run: Run, tmp_path: Path) -> None:
    bad = [{"loss": "kl"}, {"los": 1}, "garbage", {"mode": "garbage"}, {"sync_retries": "nan"}, ["off"]]
    code = (
        IMPORT
        + f"""
for bad in {bad!r}:
    say(attempt(lambda: MtpConfig(enable=False, plugin=bad)))
    say(attempt(lambda: MtpConfig(enable=True, plugin=bad)))
say(state())
"""
    )
    said, logged = play(run, tmp_path, {"": ({}, code)})[""]
    assert said[:-1:2] == ["ok"] * len(bad)
    assert all(line.startswith("SettingsError: verl-mtp-plugin: found actor_rollout_ref") for line in said[1:-1:2])
    assert said[-1] == ["auto", True]
    assert logged.count("Nobody uses it: MTP is off.") == len(bad)


ACTIVATE = """
import verl_mtp_plugin
say(attempt(lambda: verl_mtp_plugin.activate({asked!r})))
say(state())
"""


def test_activate_takes_what_the_config_takes(run: Run, tmp_path: Path) -> None:
    loss = {"VERL_MTP_PLUGIN_LOSS": "total_variation"}
    rows: dict[str, tuple[Any, dict[str, str], Any]] = {
        "mode": ("strict", {}, ["strict", True]),
        "mode, environment": ("strict", loss, ["strict, loss=total_variation", True]),
        "bool": (False, loss, ["off", False]),
        "options": (
            {"mode": "strict", "sync_retries": "1e1"},
            loss,
            ["strict, loss=total_variation, sync_retries=10", True],
        ),
        "nothing": (None, loss, ["auto, loss=total_variation", True]),
        "off beside a mistake": ("off", {"VERL_MTP_PLUGIN_LOSS": "kl"}, ["off", False]),
        "misspelt": (
            "strickt",
            {},
            "SettingsError: verl-mtp-plugin: found activate(...)='strickt'; expected one of auto",
        ),
        "a list": (["strict"], {}, "SettingsError: verl-mtp-plugin: found activate(...)=['strict']; expected one of"),
        "misspelt option": (
            {"los": 1},
            {},
            "SettingsError: verl-mtp-plugin: found activate(...).los; expected one of mode",
        ),
        "a mistake": (
            "strict",
            {"VERL_MTP_PLUGIN_LOSS": "kl"},
            "SettingsError: verl-mtp-plugin: found VERL_MTP_PLUGIN_LOSS",
        ),
    }
    scenarios = {name: (environ, ACTIVATE.format(asked=asked)) for name, (asked, environ, _) in rows.items()}
    for name, (said, _) in play(run, tmp_path, scenarios).items():
        wanted = rows[name][2]
        if isinstance(wanted, str):
            assert said[0].startswith(wanted), name
            assert said[1][1] is False
        else:
            assert said == ["ok", wanted], name


SEVERAL: dict[str, tuple[str, list[Any]]] = {
    "options of an earlier one do not stay": (
        """
        MtpConfig(enable=True, plugin={"loss": "total_variation"}); say(state())
        MtpConfig(enable=True); say(state())
        MtpConfig(enable=True, plugin="strict"); say(state())
        MtpConfig(enable=True, plugin={"clip_grad": 2}); say(state())
        """,
        [["auto, loss=total_variation", True], ["auto", True], ["strict", True], ["auto, clip_grad=2.0", True]],
    ),
    "off does not stay either": (
        """
        MtpConfig(enable=True, plugin="off"); say(state())
        MtpConfig(enable=True); say(state())
        """,
        [["off", False], ["auto", True]],
    ),
    "one with MTP off says nothing about one with MTP on": (
        """
        actor = MtpConfig(enable=True, plugin={"loss": "total_variation"})
        reference = MtpConfig(enable=False); say(state())
        critic = MtpConfig(enable=False, plugin="off"); say(state())
        """,
        [["auto, loss=total_variation", True], ["auto, loss=total_variation", True]],
    ),
    "without MTP the config counts as well": (
        """
        MtpConfig(enable=False, plugin={"sync_requests": "retract"}); say(state())
        MtpConfig(enable=False); say(state())
        MtpConfig(enable=False, plugin="off"); say(state())
        """,
        [["auto, sync_requests=retract", True], ["auto, sync_requests=retract", True], ["off", False]],
    ),
    "copies agree": (
        """
        actor = MtpConfig(enable=True, plugin={"mode": "strict", "sync_retries": 3})
        rollout = MtpConfig(enable=True, plugin={"sync_retries": "3", "mode": "Strict"}); say(state())
        """,
        [["strict, sync_retries=3", True]],
    ),
    "two in use that differ are an error that names both": (
        """
        actor = MtpConfig(enable=True, plugin={"loss": "total_variation"})
        say(attempt(lambda: MtpConfig(enable=True, plugin="strict"))); say(state())
        """,
        ["(auto, loss=total_variation) and the other for (strict)", ["auto, loss=total_variation", True]],
    ),
    "a model in training keeps its settings": (
        """
        from verl_mtp_plugin.job import configs
        actor = MtpConfig(enable=True, plugin={"loss": "total_variation"})
        configs.in_training()
        teacher = MtpConfig(enable=True); say(state())
        """,
        [["auto, loss=total_variation", True]],
    ),
    "and is not given others": (
        """
        from verl_mtp_plugin.job import configs
        actor = MtpConfig(enable=True)
        configs.in_training()
        say(attempt(lambda: MtpConfig(enable=True, plugin="strict"))); say(state())
        """,
        ["asks for (auto) and the other for (strict)", ["auto", True]],
    ),
    "the next job of a process is another one": (
        """
        from verl_mtp_plugin.job import configs
        actor = MtpConfig(enable=True, plugin={"loss": "total_variation"})
        configs.in_training()
        del actor
        MtpConfig(enable=True, plugin="strict"); say(state())
        """,
        [["strict", True]],
    ),
    "the environment's options stay": (
        """
        import os
        MtpConfig(enable=True, plugin={"loss": "total_variation", "sync_retries": None}); say(state())
        MtpConfig(enable=True); say(state())
        """,
        [["auto, loss=total_variation", True], ["auto, sync_retries=7", True]],
    ),
}
#: Where a change is said.
TOLD = {
    "a model in training keeps its settings": "a model is trained with (auto, loss=total_variation) here",
}


def test_several_configs_in_one_process(verl: None, run: Run, tmp_path: Path) -> None:
    scenarios = {
        name: ({"VERL_MTP_PLUGIN_SYNC_RETRIES": "7"} if "environment" in name else {}, IMPORT + textwrap.dedent(code))
        for name, (code, _) in SEVERAL.items()
    }
    for name, (said, logged) in play(run, tmp_path, scenarios).items():
        wanted = SEVERAL[name][1]
        assert len(said) == len(wanted), (name, said)
        for found, right in zip(said, wanted, strict=True):
            assert found == right or (isinstance(right, str) and right in found), name
        assert TOLD.get(name, "") in logged
