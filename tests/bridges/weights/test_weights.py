"""No MTP weight is random, lost or old in silence: verl's real engine and checkpoint manager, on both bridges."""

from __future__ import annotations

import math
from typing import Any

import pytest

from .run import STACKS, Runs, Stack, base_folder

#: Tensors of the tiny MiMo, and its MTP head's as Hugging Face and as Megatron counts them.
TENSORS, HEAD, PARAMETERS = 43, 16, 11
HEAD_NAMES = (
    "model.mtp_layers.0.final_layernorm.weight, model.mtp_layers.0.hidden_layernorm.weight, "
    f"model.mtp_layers.0.input_layernorm.weight, model.mtp_layers.0.input_proj.weight, ... ({HEAD} in all)"
)
PARAMETER_NAMES = (
    "mtp.layers.0.eh_proj.weight, mtp.layers.0.enorm.weight, mtp.layers.0.final_layernorm.weight, "
    f"mtp.layers.0.hnorm.weight, ... ({PARAMETERS} in all)"
)
ON_PURPOSE = (
    "set +actor_rollout_ref.model.mtp.plugin.missing_weights=random (or VERL_MTP_PLUGIN_MISSING_WEIGHTS=random): it "
    "starts from Megatron's initialization."
)
RESUME = "Resume from a checkpoint of a run with MTP. To go on with a new MTP head,"
MODELS = "Use a bridge that supports this model's MTP"
#: Of Megatron's config, and the number of layers of the tiny MiMo's trunk, by which outputs are scaled down.
INIT_STD, LAYERS = 0.02, 2

every_stack = pytest.mark.parametrize("stack", STACKS, ids=str)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(base_folder(tmp_path_factory))


def message(found: str, expected: str, advice: str) -> str:
    return f"MissingWeightsError: verl-mtp-plugin: found {found}; expected {expected}. {advice}"


# -- loading -----------------------------------------------------------------------------------------------------------


@every_stack
@pytest.mark.parametrize(
    ("folder", "names"), [("no_head", HEAD_NAMES), ("one", "model.mtp_layers.0.input_proj.weight")]
)
def test_a_checkpoint_that_lacks_mtp_tensors_is_refused(stack: Stack, folder: str, names: str, runs: Runs) -> None:
    """With an index, and without one."""
    assert runs(stack, "train")["refused"][folder] == message(
        f"{runs.folder(stack) / folder} without tensors of the MTP layers: {names}",
        "all tensors of the MTP layers that the model has",
        f"Start from a checkpoint that has its MTP head. To train a new one, {ON_PURPOSE}",
    )


@every_stack
def test_a_parameter_that_the_bridge_does_not_know_is_refused(stack: Stack, runs: Runs) -> None:
    found = runs(stack, "train")["refused"]
    assert found["unmapped"] == message(
        "MTP parameters that the bridge would not load: mtp.layers.0.eh_proj.weight",
        "a Hugging Face tensor for each",
        f"{MODELS} (`verl-mtp models` shows which do), or set actor_rollout_ref.model.mtp.enable=False.",
    )
    assert found["plan"] == message(
        f"MTP parameters that {stack.label} would not export: mtp.layers.0.eh_proj.weight",
        "a Hugging Face name for each, so that the rollout engine and checkpoints get them",
        f"{MODELS}: `verl-mtp models` shows which do.",
    )


@every_stack
def test_a_new_head_is_initialized_as_megatron_does(stack: Stack, runs: Runs) -> None:
    found = runs(stack, "train")["started_anew"]
    [notice] = found["notices"]
    assert notice.startswith(f"{runs.folder(stack) / 'no_head'} has no {HEAD} tensors of the MTP layers.")
    assert notice.count("model.mtp_layers.0.") == HEAD
    assert found["trunk_loaded"]
    assert len(found["statistics"]) == PARAMETERS
    for name, (mean, deviation) in found["statistics"].items():
        if "norm" in name:
            assert (mean, deviation) == (1, 0)
        elif name.endswith("bias"):
            assert (mean, deviation) == (0, 0)
        else:
            output = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
            wanted = INIT_STD / math.sqrt(2 * LAYERS) if output else INIT_STD
            assert deviation == pytest.approx(wanted, rel=0.05)
            assert abs(mean) < 0.1 * wanted
    mean, deviation = found["partly"]["statistics"]
    assert deviation == pytest.approx(INIT_STD, rel=0.05)
    assert found["partly"]["others_loaded"]


@every_stack
def test_a_new_head_is_trained_exported_and_saved(stack: Stack, runs: Runs) -> None:
    found = runs(stack, "train")["started_anew"]
    losses = found["losses"]
    assert losses[0] == pytest.approx(math.log(32), abs=0.2)  # of 32 tokens it prefers none
    assert losses[2] < losses[1] < losses[0] - 0.2
    assert found["head_trained"]
    # The folder it started from has none of these tensors.
    assert found["exported"]
    assert found["saved"]
    assert found["loaded"]
    assert found["started_from"], "what was saved is no checkpoint to start from"


@every_stack
def test_a_model_that_was_not_initialized_has_no_new_head(stack: Stack, runs: Runs) -> None:
    assert runs(stack, "train")["refused"]["uninitialized"] == message(
        f"{runs.folder(stack) / 'one'} without tensors of the MTP layers, and a model built with "
        "perform_initialization=False: model.mtp_layers.0.input_proj.weight",
        "parameters that Megatron has initialized, since missing_weights=random",
        "Drop perform_initialization from override_transformer_config.",
    )


# -- export and saving -------------------------------------------------------------------------------------------------


@every_stack
def test_a_tensor_that_is_not_sent_is_named_at_the_end(stack: Stack, runs: Runs) -> None:
    found = runs(stack, "train")["refused"]
    assert found["unsent"] == message(
        f"tensors of the MTP layers that {stack.label} did not export: model.mtp_layers.0.input_proj.weight",
        "all of them, or the rollout engine drafts with old weights",
        "Report this with the model and the bridge's version. To serve without drafts, set "
        "actor_rollout_ref.model.mtp.enable_rollout=False.",
    )
    assert found["sent"] == TENSORS
    assert found["close"] == {"taken": 3, "over": True}


@every_stack
def test_a_folder_without_the_head_is_no_success(stack: Stack, runs: Runs) -> None:
    found = runs(stack, "train")["spoilt"]
    assert len(found["lost"]) == HEAD / 2, "the file was saved, so there is nothing to notice"
    if stack.bridge == "megatron-bridge" and stack.release >= "0.6":  # Megatron-Bridge itself notices since
        assert found["error"].startswith("RuntimeError: ")
    else:
        more = "" if stack.bridge == "mbridge" else " With verl >= 0.8 checkpoint.strict=False saves what there is."
        assert found["error"] == message(
            f"{runs.folder(stack) / 'spoilt' / stack.hugging_face}, saved by {stack.label}, without tensors of the MTP "
            f"layers: {', '.join(found['lost'][:4])}, ... ({HEAD // 2} in all)",
            "all of them: what starts from this folder would have no MTP head",
            f"Do not use this folder. Report this with the model and the bridge's version.{more}",
        )
    if stack.bridge != "mbridge":
        assert found["copies"] == ["model.mtp_layers.0.embed_tokens.weight"]


@every_stack
def test_without_mtp_nothing_is_watched_and_all_else_is_saved(stack: Stack, runs: Runs) -> None:
    """The files that hold the MTP tensors of the checkpoint it started from hold other tensors too."""
    found = runs(stack, "train")["disabled"]
    assert found["stream"] == "GEN_CREATED"
    assert not found["watched"]
    assert found["policy_moved"]
    assert found["saved"]


# -- checkpoints -------------------------------------------------------------------------------------------------------


@every_stack
def test_a_distributed_checkpoint_without_mtp_is_refused_by_name(stack: Stack, runs: Runs) -> None:
    found = runs(stack, "train")["disabled"]
    folder = runs.folder(stack) / "plain_dist" / stack.model
    assert found["dist_folder"] == str(folder)
    expected = message(
        f"the distributed checkpoint {folder} without tensors of the MTP layers: {PARAMETER_NAMES}",
        "all tensors of the MTP layers that the model has",
        f"{RESUME} do not resume: start from that run's Hugging Face folder (checkpoint.save_contents has hf_model) "
        f"and {ON_PURPOSE}",
    )
    assert found["resume_dist"] == expected
    assert found["start_dist"] == expected
    assert found["untouched"]


@every_stack
def test_a_hugging_face_checkpoint_without_mtp_is_refused_before_the_optimizer(stack: Stack, runs: Runs) -> None:
    assert runs(stack, "train")["disabled"]["resume_hf"] == message(
        f"the checkpoint {runs.folder(stack) / 'plain'} without tensors of the MTP layers: {HEAD_NAMES}",
        "all tensors of the MTP layers that the model has, since the optimizer's states are loaded too",
        f"{RESUME} leave the optimizer out (checkpoint.load_contents=[model]) and {ON_PURPOSE}",
    )


@every_stack
def test_a_new_process_goes_on_where_the_checkpoint_was_saved(stack: Stack, runs: Runs) -> None:
    trained: dict[str, Any] = runs(stack, "train")["trained"]
    assert trained["hugging_face"], "the Hugging Face file differs from what the rollout engine is sent"
    assert trained["after"] != trained["saved"]
    resumed = runs(stack, "resume")
    # One starts from the distributed checkpoint beside a folder without a head, the other from the untrained model.
    assert resumed["dist"]["started"] == trained["saved"]
    assert resumed["hf"]["started"] != trained["saved"]
    for kind in ("dist", "hf"):
        found = resumed[kind]
        assert found["loaded"] == trained["saved"]
        assert found["metrics"] == trained["metrics"]
        assert found["after"] == trained["after"], "the optimizer's states were not those of the checkpoint"
    if stack.bridge != "mbridge":  # which saves only what it has loaded
        assert resumed["dist"]["resaved"]
