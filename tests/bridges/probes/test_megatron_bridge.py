"""The real Megatron-Bridge, asked for a model's MTP before any weight is loaded, and its answers held against models
that are really built: :mod:`.megatron_bridge_worker`."""

from __future__ import annotations

import pytest

from .stacks import EXPECTED, MEGATRON_BRIDGE, REGISTER, ask_megatron_bridge, no, yes

OLDEST = next(iter(MEGATRON_BRIDGE))
on_each_release = pytest.mark.parametrize("release", MEGATRON_BRIDGE)

NO_CLASS = "ValueError: \N{BALLOT X} Model architecture 'MiMoForCausalLM' is not yet supported"
UNMAPPED_LAYER = no("Qwen3NextBridge has no mapping for mtp.layers.0.mtp_model_layer.*")
UNMAPPED_DEPTH = no("Qwen3NextBridge has no mapping for mtp.layers.1.eh_proj.weight")


def supported(bridge: str) -> list[object]:
    return yes(f"{bridge} builds the MTP layers and maps their weights")


def builds_none(bridge: str) -> list[object]:
    return no(f"{bridge} builds this model without MTP layers (mtp_num_layers=None)")


@on_each_release
def test_what_is_supported(release: str) -> None:
    found = ask_megatron_bridge(release)
    assert found["GLM-4.5"] == supported("GLM45Bridge")
    if release == OLDEST:
        assert found["MiMo"] == NO_CLASS
        assert found["DeepSeek-V3"] == builds_none("DeepSeekV3Bridge")
    else:
        assert found["MiMo"] == supported("MimoBridge")
        assert found["DeepSeek-V3"] == supported("DeepSeekV3Bridge")


#: Qwen3-Next as it is, with mtp_num_layers=1 set, with two layers, and with one layer that is run twice.
QWEN3_NEXT = {
    # Builds none unless told; its megatron-core has no layer that is run twice.
    "0.3.1": (builds_none("Qwen3NextBridge"), supported("Qwen3NextBridge"), UNMAPPED_DEPTH, UNMAPPED_DEPTH),
    # Knows only the name that the inner layer had before its own megatron-core.
    "0.4.2": (UNMAPPED_LAYER, UNMAPPED_LAYER, UNMAPPED_LAYER, UNMAPPED_LAYER),
    "0.5.1": (supported("Qwen3NextBridge"), supported("Qwen3NextBridge"), UNMAPPED_DEPTH, supported("Qwen3NextBridge")),
    "0.6.2": (supported("Qwen3NextBridge"), supported("Qwen3NextBridge"), UNMAPPED_DEPTH, supported("Qwen3NextBridge")),
}


@on_each_release
def test_qwen3_next(release: str) -> None:
    found = ask_megatron_bridge(release)
    cases = ("Qwen3-Next", "Qwen3-Next with an override", "Qwen3-Next with two", "Qwen3-Next with one twice")
    assert tuple(found[case] for case in cases) == QWEN3_NEXT[release]


@on_each_release
def test_none_would_be_built_or_another_number(release: str) -> None:
    found = ask_megatron_bridge(release)
    assert found["Qwen2"] == builds_none("Qwen2Bridge")
    assert found["Qwen2 promises none"] == no("the Hugging Face config promises no MTP layer")
    assert found["GLM-4.5 with another number"] == no(
        "GLM45Bridge builds 1 MTP layer where the Hugging Face config promises 2"
    )
    assert found["MiMo with another number"] == (
        NO_CLASS if release == OLDEST else no("MimoBridge builds 1 MTP layer where the Hugging Face config promises 3")
    )


@on_each_release
def test_somebody_elses_bridge(release: str) -> None:
    found = ask_megatron_bridge(release)
    inner = "transformer_layer" if release == OLDEST else "mtp_model_layer"
    assert found["lab"] == found["lab that sees images"] == supported("LabBridge")
    assert found["lab without the inner layer"] == no(f"LabBridge has no mapping for mtp.layers.0.{inner}.*")
    assert found["lab without a norm"] == no("LabBridge has no mapping for mtp.layers.0.final_layernorm.weight")
    assert found["lab without mappings"] == no("LabBridge has no mapping for any weight of an MTP layer")


@on_each_release
def test_what_cannot_be_asked_gives_no_answer(release: str) -> None:
    assert ask_megatron_bridge(release)["not a bridge"] == [
        None,
        "it could not be asked: AttributeError: 'object' object has no attribute '_model_bridge'",
    ]


#: Parameters of one MTP layer: around the inner layer; attention; then fc1, its norm and fc2, or else norm and router,
#: two for each of four experts, and the shared expert's.
PARAMETERS = {
    "MiMo": 4 + 4 + 3,
    "DeepSeek-V3": 4 + 8 + 2 + 8 + 2,
    "GLM-4.5": 4 + 6 + 2 + 8 + 2,
    "Qwen3-Next": 4 + 5 + 2 + 8 + 3,
}
BUILT = {
    "0.3.1": {"GLM-4.5"},
    "0.4.2": {"MiMo", "DeepSeek-V3", "GLM-4.5"},
    "0.5.1": {"MiMo", "DeepSeek-V3", "GLM-4.5", "Qwen3-Next"},
    "0.6.2": {"MiMo", "DeepSeek-V3", "GLM-4.5", "Qwen3-Next"},
}


@on_each_release
def test_every_weight_of_a_supported_model_has_a_mapping(release: str) -> None:
    answers = ask_megatron_bridge(release)["families"]
    built = {family: answer for family, answer in answers.items() if isinstance(answer, list)}
    for family, (parameters, unmapped) in built.items():
        assert parameters > 0, family
        assert unmapped == [], family
    assert {family: built[family][0] for family in BUILT[release]} == {f: PARAMETERS[f] for f in BUILT[release]}


def test_what_is_refused_really_has_no_mapping() -> None:
    parameters, unmapped = ask_megatron_bridge("0.4.2")["Qwen3-Next built"]
    assert parameters == PARAMETERS["Qwen3-Next"]
    assert len(unmapped) == parameters - 4
    assert all(name.startswith("mtp.layers.0.mtp_model_layer.") for name in unmapped)


def test_what_is_built_without_mtp_really_has_none() -> None:
    assert ask_megatron_bridge("0.3.1")["Qwen3-Next built"] == [0, []]


def test_refusals() -> None:
    found = ask_megatron_bridge("0.3.1")
    assert found["MiMo refused"] == (
        "verl-mtp-plugin: found MiMoForCausalLM (model_type mimo, family MiMo) with megatron-bridge 0.3.1: it has no "
        f"bridge class for this model{EXPECTED}megatron-bridge does MiMo from 0.4.0 on. mbridge does it from 0.15.1 "
        "on; none is installed: actor_rollout_ref.actor.megatron.vanilla_mbridge=True. megatron-bridge 0.3.1 does the "
        f"MTP of GLM-4.5.{REGISTER}"
    )
    assert found["DeepSeek-V3 refused"] == (
        "verl-mtp-plugin: found DeepseekV3ForCausalLM (model_type deepseek_v3, family DeepSeek-V3) with "
        "megatron-bridge 0.3.1: DeepSeekV3Bridge builds this model without MTP layers (mtp_num_layers=None)"
        f"{EXPECTED}megatron-bridge does DeepSeek-V3 from 0.4.0 on. megatron-bridge 0.3.1 does the MTP of "
        f"GLM-4.5.{REGISTER}"
    )
    assert found["GLM-4.5 refused"] is None  # Megatron-Bridge has a class for it


@pytest.mark.parametrize("release", [release for release in MEGATRON_BRIDGE if release != OLDEST])
def test_no_refusal(release: str) -> None:
    found = ask_megatron_bridge(release)
    assert found["MiMo refused"] is found["DeepSeek-V3 refused"] is found["GLM-4.5 refused"] is None
