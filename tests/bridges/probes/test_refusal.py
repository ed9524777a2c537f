"""What a refusal advises, by what is installed; the bridges themselves are not asked here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from verl_mtp_plugin.bridges import refusal, support
from verl_mtp_plugin.bridges.support import Support
from verl_mtp_plugin.errors import UnsupportedError
from verl_mtp_plugin.models import MBRIDGE, MEGATRON_BRIDGE, ModelFamily

from .stacks import EXPECTED, REGISTER

TALL = ModelFamily(
    "Tall", ("TallForCausalLM",), ("depths",), ("tall",), since={MBRIDGE: "1.0", MEGATRON_BRIDGE: "0.10"}
)
SMALL = ModelFamily("Small", ("SmallForCausalLM",), ("depths",), ("small",), since={MEGATRON_BRIDGE: "0.9.0"})
FAMILIES = (TALL, SMALL)
CONFIG = SimpleNamespace(architectures=["TallForCausalLM"], model_type="tall")
NOT_BUILT = Support(MEGATRON_BRIDGE, False, "it builds none")


def advise(monkeypatch: pytest.MonkeyPatch, config: SimpleNamespace, **installed: str) -> str:
    """The message, without what every message has."""
    versions = {name.replace("_", "-"): version for name, version in installed.items()}
    for module in (refusal, support):
        monkeypatch.setattr(module, "installed_version", versions.get)
    error = refusal.unsupported(config, NOT_BUILT, FAMILIES)
    assert isinstance(error, UnsupportedError)
    assert error.advice.endswith(REGISTER.strip())
    return str(error).removesuffix(REGISTER.strip()).removeprefix("verl-mtp-plugin: found ").replace(EXPECTED, " | ")


@pytest.mark.parametrize(
    ("installed", "advice"),
    [
        (
            {"megatron_bridge": "0.9.9"},
            "megatron-bridge does Tall from 0.10 on. mbridge does it from 1.0 on; none is installed: "
            "actor_rollout_ref.actor.megatron.vanilla_mbridge=True. megatron-bridge 0.9.9 does the MTP of Small. ",
        ),
        # 0.10 is more than 0.9, and a release candidate counts as the release.
        (
            {"megatron_bridge": "0.10.0rc1", "mbridge": "0.15.1"},
            "mbridge does it from 1.0 on; 0.15.1 is installed: actor_rollout_ref.actor.megatron.vanilla_mbridge=True. "
            "megatron-bridge 0.10.0rc1 does the MTP of Small. ",
        ),
        (
            {"megatron_bridge": "0.8", "mbridge": "1.0.0+local"},
            "megatron-bridge does Tall from 0.10 on. mbridge does it from 1.0 on: "
            "actor_rollout_ref.actor.megatron.vanilla_mbridge=True. ",
        ),
        # Built from source, with no version worth the name.
        (
            {"megatron_bridge": "unknown", "mbridge": "2"},
            "megatron-bridge does Tall from 0.10 on. mbridge does it from 1.0 on: "
            "actor_rollout_ref.actor.megatron.vanilla_mbridge=True. ",
        ),
    ],
)
def test_ways_out(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], advice: str) -> None:
    label = f"megatron-bridge {installed['megatron_bridge']}"
    assert advise(monkeypatch, CONFIG, **installed) == (
        f"TallForCausalLM (model_type tall, family Tall) with {label}: it builds none | {advice}"
    )


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (SimpleNamespace(architectures=["MyLM"], model_type="my"), "MyLM (model_type my, of no known family)"),
        (SimpleNamespace(), "a model without architectures (model_type None, of no known family)"),
    ],
)
def test_a_model_of_no_known_family(monkeypatch: pytest.MonkeyPatch, config: SimpleNamespace, named: str) -> None:
    assert advise(monkeypatch, config, megatron_bridge="0.10.1") == (
        f"{named} with megatron-bridge 0.10.1: it builds none | megatron-bridge 0.10.1 does the MTP of Tall, Small. "
    )


def test_a_bridge_that_is_not_there_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    for vanilla in (True, False):
        assert refusal.unknown_model(CONFIG, FAMILIES, vanilla=vanilla) is None
