"""What is refused, and the gate of verl 0.7.1's own actor, on the real packages."""

from __future__ import annotations

from tests.contract.stacks import MEGATRON_CORE, VERL

from .conftest import RunStack, results

OWN_STAGE = """
    from types import SimpleNamespace
    from verl_mtp_plugin.errors import UnsupportedError
    from verl_mtp_plugin.training.mtp_block import check_supported

    for post_process, mtp in ((True, True), (False, False), (True, False), (False, True)):
        try:
            check_supported(SimpleNamespace(post_process=post_process), {"mtp_in_postprocess": mtp})
            print("=> passed")
        except UnsupportedError as error:
            print("=>", error.found, "|", error.expected)
"""


def test_mtp_on_a_stage_of_its_own_is_refused_on_both_stages(run_stack: RunStack) -> None:
    refused = (
        "MTP training with the MTP layers on a pipeline stage other than the last | "
        "the MTP layers on the last pipeline stage, where the labels arrive"
    )
    done = run_stack(OWN_STAGE, verl=VERL[-1], megatron_core=MEGATRON_CORE[-1])
    assert results(done) == ["passed", "passed", refused, refused]


OWN_METHOD = """
    import torch
    from verl_mtp_plugin.errors import UnsupportedError
    from verl_mtp_plugin.training.request import request, verify

    class Other(torch.nn.Module):
        def _postprocess(self): ...

    model = torch.nn.Sequential(Other())
    request(model[0])
    try:
        verify(model)
    except UnsupportedError as error:
        print("=>", error.found)
"""


def test_a_model_with_a_postprocess_of_its_own_is_refused(run_stack: RunStack) -> None:
    assert results(run_stack(OWN_METHOD)) == ["__main__.Other with a _postprocess of its own"]


ACTOR = """
    import megatron.core.models.gpt.gpt_model
    import verl, verl_mtp_plugin
    from omegaconf import OmegaConf
    from verl.workers.actor.megatron_actor import MegatronPPOActor

    verl_mtp_plugin.require("job.gate.megatron_actor")
    print("=>", verl_mtp_plugin.report().mode, verl_mtp_plugin.report().active)
    try:
        MegatronPPOActor(mtp_config=OmegaConf.create({"enable": True, "plugin": PLUGIN}))
    except TypeError as error:  # verl's own complaint, of the arguments that this test leaves out
        print("=>", "missing" in str(error))
    print("=>", verl_mtp_plugin.report().mode, verl_mtp_plugin.report().active)
"""


def test_the_flag_is_read_where_verl_0_7_builds_no_mtp_config(run_stack: RunStack) -> None:
    done = run_stack(ACTOR.replace("PLUGIN", "'off'"), verl="0.7.1", megatron_core="0.16.1")
    assert results(done) == ["auto True", "True", "off False"]


def test_a_bare_off_that_yaml_read_as_false_is_off(run_stack: RunStack) -> None:
    done = run_stack(ACTOR.replace("PLUGIN", "False"), verl="0.7.1", megatron_core="0.16.1")
    assert results(done)[-1] == "off False"
