"""The real mbridge, asked for a model's MTP before any weight is loaded: :mod:`.mbridge_worker`."""

from __future__ import annotations

import pytest

from .stacks import EXPECTED, MBRIDGE, MEGATRON_CORE, REGISTER, ask_mbridge, no, yes

on_each_megatron_core = pytest.mark.parametrize("megatron_core", MEGATRON_CORE)
on_each_layer_name = pytest.mark.parametrize(("megatron_core", "inner"), MEGATRON_CORE.items())


def supported(bridge: str) -> list[object]:
    return yes(f"{bridge} builds the MTP layers and names their weights")


@on_each_megatron_core
def test_mimo_is_supported_as_mended_and_not_before(megatron_core: str) -> None:
    found = ask_mbridge(megatron_core)
    assert found["MiMo unmended"] == no(
        "MimoBridge cannot build the MTP layers: ValueError: Invalid spec: "
        "TransformerConfig(tensor_model_parallel_size=1, ..."
    )
    assert found["MiMo"] == supported("MimoBridge")
    # All have a name: 4 around the inner layer; output, qkv with bias and norm; fc1 with norm, fc2.
    assert found["MiMo built"] == [4 + 4 + 3, []]


@on_each_megatron_core
def test_all_pipeline_stages_say_the_same(megatron_core: str) -> None:
    found = ask_mbridge(megatron_core)
    first = 0  # the stage that was asked, and still is the first afterwards
    assert found["MiMo unmended on the first stage"] == [*found["MiMo unmended"], first]
    assert found["MiMo on the first stage"] == [*found["MiMo"], first]


@on_each_megatron_core
def test_virtual_pipelining_is_named_where_it_is_the_cause(megatron_core: str) -> None:
    supported, detail, left, refusal = ask_mbridge(megatron_core)["MiMo with virtual stages"]
    assert supported is False
    assert detail == (
        "not with virtual pipelining (virtual_pipeline_model_parallel_size=2): MimoBridge cannot build the MTP layers: "
        "AssertionError: vp_stage must be provided if virtual pipeline model parallel size is set"
    )
    assert left == [2, 2], "what was asked for is what it was before"
    assert (
        EXPECTED + "Set actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size=null, or use "
        "Megatron-Bridge, which trains MTP with virtual pipelining "
        "(actor_rollout_ref.actor.megatron.vanilla_mbridge=False). "
    ) in refusal


@on_each_megatron_core
def test_none_would_be_built_or_another_number(megatron_core: str) -> None:
    found = ask_mbridge(megatron_core)
    assert found["GLM-4.5"] == no("GLM4MoEBridge builds this model without MTP layers (mtp_num_layers=None)")
    assert found["GLM-4.5 with an override"] == no(
        "GLM4MoEBridge gives GPTModel no mtp_block_spec, so none would be built in spite of its config"
    )
    assert found["Qwen2"] == no("Qwen2Bridge builds this model without MTP layers (mtp_num_layers=None)")
    assert found["Qwen2 promises none"] == no("the Hugging Face config promises no MTP layer")
    assert found["MiMo with another number"] == no(
        "MimoBridge builds 1 MTP layer where the Hugging Face config promises 2"
    )


@on_each_layer_name
def test_weights_without_a_name(megatron_core: str, inner: str) -> None:
    found = ask_mbridge(megatron_core)
    unknown = "MendedDeepseek does not know mtp.layers.0.{}: AssertionError: {}".format
    assert found["DeepSeek-V3 mended"] == no(unknown("eh_proj.weight", "only support 61 layers for now"))
    assert found["DeepSeek-V3 with two"] == no(unknown("eh_proj.weight", "only support one mtp layer for now"))
    assert found["DeepSeek-V3 in full"] == (
        supported("MendedDeepseek")
        if inner == "transformer_layer"
        else no(unknown("mtp_model_layer.self_attention.linear_proj.weight", "mtp not found"))
    )
    assert found["lab without a name"] == no("LabBridge does not know mtp.layers.0.hnorm.weight: KeyError: 'hnorm'")


@on_each_megatron_core
def test_mbridge_as_it_is_makes_no_deepseek_v3_at_all(megatron_core: str) -> None:
    assert ask_mbridge(megatron_core)["DeepSeek-V3"] == (
        "TypeError: MLATransformerConfig.__init__() got an unexpected keyword argument 'max_position_embeddings'"
    )


@on_each_layer_name
def test_one_weight_taken_for_another(megatron_core: str, inner: str) -> None:
    """GLM-4.5's name mapping, given layers to map."""
    found = ask_mbridge(megatron_core)
    # It does not know mtp_model_layer, and takes the number of the MTP layer for one of the trunk.
    trunk = no(
        "MendedGlm loads mtp.layers.0.mtp_model_layer.self_attention.linear_proj.weight from "
        "model.layers.0.self_attn.o_proj.weight, which is decoder.layers.0.self_attention.linear_proj.weight"
    )
    # All depths get what the first has, which lies behind the trunk's two layers.
    depths = no(
        "MendedGlm loads mtp.layers.1.eh_proj.weight from model.layers.2.eh_proj.weight, which is "
        "mtp.layers.0.eh_proj.weight"
    )
    old = inner == "transformer_layer"
    assert found["GLM-4.5 with layers"] == (supported("MendedGlm") if old else trunk)
    assert found["GLM-4.5 with two"] == (depths if old else trunk)


@on_each_megatron_core
def test_somebody_elses_bridge_is_supported(megatron_core: str) -> None:
    found = ask_mbridge(megatron_core)
    assert found["lab"] == supported("LabBridge")
    assert found["lab built"] == [2 * (4 + 4 + 3), []]  # MiMo's layer, twice


@on_each_megatron_core
def test_what_cannot_be_asked_gives_no_answer(megatron_core: str) -> None:
    assert ask_mbridge(megatron_core)["not a bridge"] == [
        None,
        "object could not be asked: AttributeError: 'object' object has no attribute 'config'",
    ]
    assert ask_mbridge(megatron_core, "bare") == [
        None,
        "MimoBridge could not be asked: RuntimeError: without TransformerEngine it makes no layer specs",
    ]


@on_each_megatron_core
def test_refusals(megatron_core: str) -> None:
    found = ask_mbridge(megatron_core)
    assert found["GLM-4.5 refused"] == (
        f"verl-mtp-plugin: found Glm4MoeForCausalLM (model_type glm4_moe, family GLM-4.5) with mbridge {MBRIDGE}: "
        f"GLM4MoEBridge builds this model without MTP layers (mtp_num_layers=None){EXPECTED}"
        "megatron-bridge does it from 0.3.1 on; none is installed: "
        "actor_rollout_ref.actor.megatron.vanilla_mbridge=False. "
        f"mbridge {MBRIDGE} does the MTP of MiMo.{REGISTER}"
    )
    assert found["Qwen3-Next refused"] == (
        "verl-mtp-plugin: found Qwen3NextForCausalLM (model_type qwen3_next, family Qwen3-Next) with mbridge "
        f"{MBRIDGE}: it has no bridge class for this model{EXPECTED}"
        "megatron-bridge does it from 0.5.0 on; none is installed: "
        "actor_rollout_ref.actor.megatron.vanilla_mbridge=False. "
        f"mbridge {MBRIDGE} does the MTP of MiMo.{REGISTER}"
    )
    assert found["MiMo refused"] is None  # mbridge has a class for it
