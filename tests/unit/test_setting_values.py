"""One grammar for both doors, as a table of every option: environment text, and what YAML makes of the same."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from verl_mtp_plugin.errors import SettingsError
from verl_mtp_plugin.setting_values import FALSE, PARSERS, TRUE
from verl_mtp_plugin.settings import OPTION_VARIABLES, VARIABLES, Mode, Settings
from verl_mtp_plugin.startup import OFF
from verl_mtp_plugin.variables import misspelt

COUNTS = {"loss_chunk_tokens": 1, "sync_retries": 0}  # with their least
SECONDS = ("sync_drain_timeout_s", "sync_control_timeout_s", "sync_transfer_timeout_s")
WORDS = {
    "loss": ("cross_entropy", "soft_cross_entropy", "total_variation"),
    "missing_weights": ("error", "random"),
    "sync_requests": ("abort", "retract"),
}

#: A number as it is written -> its value, and what YAML or Hydra hand over for it.
NUMBERS: dict[str, tuple[float, tuple[Any, ...]]] = {
    "5": (5, (5, "5")),
    "+5": (5, (5, "+5")),
    "\t5 ": (5, (5, " 5 ")),
    "5.0": (5, (5.0, "5.0")),
    "5.": (5, (5.0,)),
    "1e3": (1000, (1000.0, "1e3")),
    "1E+03": (1000, (1000.0, "1E+03")),
    "10e-1": (1, (1.0, "10e-1")),
    "1_000": (1000, (1000, "1_000")),
    "1_0.0_0": (10, (10.0, "1_0.0_0")),
    "0.5": (0.5, (0.5, "0.5")),
    ".5": (0.5, (0.5, ".5")),
    "1.5": (1.5, (1.5, "1.5")),
    "0": (0, (0, 0.0, "-0")),
    "1e9": (1e9, (1000000000, 1e9)),
    "1e12": (1e12, (10**12, 1e12)),
}
#: What is no number, and what YAML or Hydra hand over for it.
NO_NUMBERS: dict[str, tuple[Any, ...]] = {
    "1__000": ("1__000",),
    "_1": ("_1",),
    "1_": ("1_",),
    "1,000": ("1,000",),
    "1 000": ("1 000",),
    "60s": ("60s",),
    "010": ("010",),
    "0x10": ("0x10",),
    "1e": ("1e",),
    "--5": ("--5",),
    "-1": (-1, -1.0),
    "\uff15": ("\uff15",),
    "\u0665": ("\u0665",),
    "\u00bd": ("\u00bd",),
    "nan": (math.nan, "nan"),
    "inf": (math.inf, ".inf", "Infinity"),
    "-inf": (-math.inf,),
    "1e400": ("1e400", 10**400),
    "1e-400": ("1e-400",),  # neither whole nor a float above zero
    "1e99999999999999999999": ("1e99999999999999999999",),
    "9" * 5000: ("9" * 5000, 10**5000),
    "many": ("many", b"5", [5], {"a": 5}, 5j),
    "true": (True, False),
}


def outcome(name: str, value: Any, *, config: bool) -> Any:
    """What an option is read as, or "refused"."""
    try:
        if config:
            return getattr(Settings().with_config({name: value}), name)
        return getattr(Settings.from_environment({OPTION_VARIABLES[name]: value}), name)
    except SettingsError as error:
        return "refused" if len(str(error)) < 700 and "Correct " in error.advice else str(error)


def expected(name: str, value: float) -> Any:
    if name in COUNTS:
        return int(value) if value == int(value) and COUNTS[name] <= value <= 10**9 else "refused"
    return float(value) if 0 < value <= (10**9 if name in SECONDS else 1e300) else "refused"


@pytest.mark.parametrize("name", [*COUNTS, *SECONDS, "clip_grad"])
def test_numbers(name: str) -> None:
    for text, (value, given) in NUMBERS.items():
        right = expected(name, value)
        assert outcome(name, text, config=False) == right, text
        for number in given:
            found = outcome(name, number, config=True)
            assert (found, type(found)) == (right, type(right)), number
    for text, others in NO_NUMBERS.items():
        assert outcome(name, text, config=False) == "refused", text
        for other in others:
            assert outcome(name, other, config=True) == "refused", type(other)


@pytest.mark.parametrize("name", WORDS)
def test_words(name: str) -> None:
    for word in WORDS[name]:
        for text in (word, word.upper(), f" {word} "):
            assert outcome(name, text, config=False) == outcome(name, text, config=True) == word
    for value in ("kl", "true", "1", f"{WORDS[name][0]}s"):
        assert outcome(name, value, config=False) == outcome(name, value, config=True) == "refused"
    others: tuple[Any, ...] = (True, 1, 1.0, [WORDS[name][0]], {WORDS[name][0]: 1})
    for other in others:
        assert outcome(name, other, config=True) == "refused"


BOOLEANS = [*((text, True) for text in TRUE), *((text, False) for text in FALSE)]


@pytest.mark.parametrize(("text", "value"), BOOLEANS)
def test_booleans(text: str, value: bool) -> None:
    for written in (text, text.upper(), f" {text.title()} "):
        assert outcome("check_drafter", written, config=False) is value
        assert outcome("check_drafter", written, config=True) is value
        mode = Mode.AUTO if value else Mode.OFF
        assert Settings.from_environment({"VERL_MTP_PLUGIN": written}).mode is mode
        assert Settings().with_config(written).mode is Settings().with_config({"mode": written}).mode is mode
    for given in (value, int(value)):
        assert outcome("check_drafter", given, config=True) is value
        assert Settings().with_config(given).mode is Settings(mode=given).mode is mode  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["y", "t", "2", "01", "oui", "1.0", "none", "tru\u0435"])
def test_what_is_no_boolean(text: str) -> None:
    assert outcome("check_drafter", text, config=False) == outcome("check_drafter", text, config=True) == "refused"
    with pytest.raises(SettingsError, match="one of auto, strict, off"):
        Settings.from_environment({"VERL_MTP_PLUGIN": text})
    with pytest.raises(SettingsError, match="one of auto, strict, off"):
        Settings().with_config(text)


@pytest.mark.parametrize("name", PARSERS)
def test_null_is_the_default_at_both_doors(name: str) -> None:
    default = getattr(Settings(), name)
    for text in ("null", " NULL "):
        assert outcome(name, text, config=False) == default
    changed = Settings(Mode.AUTO, "", "total_variation", 7, 2.0, "random", "retract", 1, 2, 3, 4, True)
    assert getattr(changed, name) != default
    for value in (None, "null", ""):
        assert getattr(changed.with_config({name: value}), name) == default
    assert Settings.from_environment({OPTION_VARIABLES[name]: " ", "VERL_MTP_PLUGIN": "null"}) == Settings()


@pytest.mark.parametrize("name", [*PARSERS, "mode"])
def test_settings_validate_themselves(name: str) -> None:
    make: Any = Settings
    with pytest.raises(SettingsError, match=f"found Settings.{name}='garbage'"):
        make(**{name: "garbage"})
    with pytest.raises(SettingsError):
        replace(make(), **{name: object()})


def test_settings_from_python_are_read_like_all_others() -> None:
    assert Settings("strict").mode is Mode.STRICT  # type: ignore[arg-type]
    assert Settings(sync_retries="1e1", check_drafter="no").options == {  # type: ignore[arg-type]
        "sync_retries": "10",
        "check_drafter": "False",
    }


BAD = {**dict.fromkeys(OPTION_VARIABLES.values(), "garbage"), "VERL_MTP_PLUGIN_LOS": "kl", "VERL_MTP_PLUGN": "strict"}


@pytest.mark.parametrize("off", ["off", "OFF ", "0", "false"])
def test_off_wins_over_all_that_is_wrong(off: str) -> None:
    assert Settings.from_environment({**BAD, "VERL_MTP_PLUGIN": off}) == Settings(Mode.OFF, "VERL_MTP_PLUGIN")
    bad = dict.fromkeys((*OPTION_VARIABLES, "unknown"), "garbage")
    assert Settings().with_config({**bad, "mode": off}).mode is Mode.OFF
    assert Settings().with_config({"mode": False, **bad}).options == {}
    assert set(OFF) == {"off", *FALSE}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("VERL_MTP_PLUGIN_LOS", "VERL_MTP_PLUGIN_LOSS"),
        ("VERL_MTP_PLUGIN_SYNC_RETRY", "VERL_MTP_PLUGIN_SYNC_RETRIES"),
        ("VERL_MTP_PLUGIN_MODE", "VERL_MTP_PLUGIN"),
        ("verl_mtp_plugin_loss", "VERL_MTP_PLUGIN_LOSS"),
        ("VERL_MTP_PLUGINS", "VERL_MTP_PLUGIN"),
        ("VERL_MTP_PLUGN", "VERL_MTP_PLUGIN"),
        ("VERL_MPT_PLUGIN_CLIP_GRAD", "VERL_MTP_PLUGIN_CLIP_GRAD"),
        ("VERL_MTPPLUGIN_CLIP_GRAD", "VERL_MTP_PLUGIN_CLIP_GRAD"),
    ],
)
def test_a_misspelt_variable_is_named(name: str, meant: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({name: "1", "PATH": "/bin"})
    assert caught.value.found == f"the environment variable {name}"
    assert meant in caught.value.advice


def test_variables_of_others_are_theirs() -> None:
    theirs = ("VERL_LOGGING_LEVEL", "VERL_USE_EXTERNAL_PLUGINS", "VERL_MTP_LAYERS", "MTP_PLUGIN_LOSS", "VERL_PLUGIN")
    ours = (*VARIABLES, "VERL_MTP_PLUGIN_CHILD", "VERL_MTP_PLUGIN_SAID", "VERL_MTP_PLUGIN_CACHE")
    assert misspelt(dict.fromkeys((*theirs, *ours), "1")) == {}
    assert misspelt({"VERL_MTP_PLUGIN_LOS": ""}) == {}
