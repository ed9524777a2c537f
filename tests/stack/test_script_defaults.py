"""What upstream's MTP scripts leave out or still say: verl's real config, its reward manager, one reward computed."""

from __future__ import annotations

import pytest

from tests.contract.stacks import VERL

from .conftest import RunStack, results

#: What makes a job one with MTP.
MTP = "actor_rollout_ref.model.mtp.enable=True"
#: What verl's hybrid MTP script says of the reward, in the words of its release; ``log`` is not among it.
REWARD = [
    MTP,
    "+reward.reward_kwargs.overlong_buffer_cfg.enable=True",
    "+reward.reward_kwargs.overlong_buffer_cfg.len=4",
    "+reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=0.5",
    "+reward.reward_kwargs.max_resp_len=8",
]
#: And of offloading.
OFFLOAD = [MTP, *(f"actor_rollout_ref.actor.megatron.{name}_offload=True" for name in ("param", "grad", "optimizer"))]
#: What makes it a job that the plugin has no part in.
WITHOUT: tuple[list[str], ...] = (
    [],
    ["actor_rollout_ref.model.mtp.enable=False"],
    [MTP, "+actor_rollout_ref.model.mtp.plugin=off"],
    [MTP, "+actor_rollout_ref.model.mtp.plugin.mode=off", "+actor_rollout_ref.model.mtp.plugin.loss=kl"],
)
#: The releases that have the option, and those that refuse it.
HAVE, LACK = VERL[:3], VERL[3:]
#: A response of 6 tokens of 8, the last 4 of which are the buffer: 2 too long, of 4, at half a point.
EXPECTED = 1.0 - 2 / 4 * 0.5
MESSAGE = "overlong_buffer_cfg.log is not set and verl's dapo reward manager reads it: taken as False"

COMPOSE = """
    import asyncio, os, sys, verl
    from hydra import compose, initialize_config_dir
    folder = os.path.join(os.path.dirname(verl.__file__), "trainer", "config")
    with initialize_config_dir(folder, version_base=None):
        config = compose("ppo_megatron_trainer", overrides=["actor_rollout_ref.rollout.name=sglang", *{overrides!r}])
    print("=>", config.actor_rollout_ref.actor.megatron.get("grad_offload"))
"""
COMPUTE = """
    import torch
    from tensordict import TensorDict
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.dapo import DAPORewardManager
    import numpy

    class Tokenizer:
        def decode(self, ids, skip_special_tokens=True):
            return "text"

    async def reward():
        manager = DAPORewardManager(config=config, tokenizer=Tokenizer(), compute_score=lambda **_: 1.0)
        mask = torch.tensor([[1, 1] + [1] * 6 + [0] * 2])
        data = DataProto(
            batch=TensorDict({{"responses": torch.zeros(1, 8, dtype=torch.long), "attention_mask": mask}}, [1]),
            non_tensor_batch={{
                "data_source": numpy.array(["x"], dtype=object),
                "reward_model": numpy.array([{{"ground_truth": "1"}}], dtype=object),
            }},
        )
        return [await manager.run_single(data) for _ in range(2)][-1]

    found = asyncio.run(reward())
    print("=>", float(found["reward_score"]), sorted(found["reward_extra_info"]))
    print("=>", config.reward.reward_kwargs.overlong_buffer_cfg.log)
"""


@pytest.mark.parametrize("verl", VERL)
def test_a_reward_without_the_key(run_stack: RunStack, verl: str) -> None:
    done = run_stack(COMPOSE.format(overrides=REWARD) + COMPUTE.format(), verl=verl)
    assert results(done)[1:] == [f"{EXPECTED} ['acc']", "False"]
    assert done.stderr.count(MESSAGE) == 1


def test_a_reward_with_the_key(run_stack: RunStack) -> None:
    """What the user says holds, and nothing is said about it."""
    overrides = [*REWARD, "+reward.reward_kwargs.overlong_buffer_cfg.log=True"]
    done = run_stack(COMPOSE.format(overrides=overrides) + COMPUTE.format(), verl=VERL[-1])
    assert results(done)[1:] == [f"{EXPECTED} ['acc', 'overlong', 'overlong_reward']", "True"]
    assert MESSAGE not in done.stderr


@pytest.mark.parametrize("verl", VERL)
def test_without_the_plugin_the_reward_fails(run_stack: RunStack, verl: str) -> None:
    """What the patch is for; when this fails, it can be deleted."""
    code = COMPOSE.format(overrides=REWARD) + COMPUTE.format()
    done = run_stack(code, verl=verl, check=False, VERL_MTP_PLUGIN="off")
    assert done.returncode != 0
    assert "Key 'log' is not in struct" in done.stderr


OTHER_JOBS = """
    import os, sys, verl
    from hydra import compose, initialize_config_dir
    from verl.experimental.reward_loop.reward_manager.dapo import DAPORewardManager
    folder = os.path.join(os.path.dirname(verl.__file__), "trainer", "config")

    def composed(*overrides):
        with initialize_config_dir(folder, version_base=None):
            return compose("ppo_megatron_trainer", overrides=["actor_rollout_ref.rollout.name=sglang", *overrides])

    for others in {without!r}:
        try:
            print("=>", composed(*{offload!r}, *others))
        except Exception as error:
            print("=>", str(error).splitlines()[0])
        config = composed(*{reward!r}, *others)
        manager = DAPORewardManager(config=config, tokenizer=None, compute_score=None)
        print("=>", "log" in manager.overlong_buffer_cfg)
    config = composed(*{offload!r}, *{reward!r}, "actor_rollout_ref.model.mtp={{enable:true}}")
    manager = DAPORewardManager(config=config, tokenizer=None, compute_score=None)
    print("=>", config.actor_rollout_ref.actor.megatron.get("grad_offload"), manager.overlong_buffer_cfg.log)
"""


def test_other_jobs_are_left_alone(run_stack: RunStack) -> None:
    """MTP off, or the plugin: what is not set stays so, what is unknown is refused. The last one has both on."""
    code = OTHER_JOBS.format(without=WITHOUT, offload=OFFLOAD[1:], reward=REWARD[1:])
    found = results(run_stack(code, verl=LACK[-1]))
    refused = "Could not override 'actor_rollout_ref.actor.megatron.grad_offload'."
    assert found == [refused, "False"] * len(WITHOUT) + ["None False"]


@pytest.mark.parametrize("verl", LACK)
def test_the_withdrawn_option_is_left_out(run_stack: RunStack, verl: str) -> None:
    done = run_stack(COMPOSE.format(overrides=OFFLOAD), verl=verl)
    assert results(done) == ["None"]
    assert done.stderr.count("actor_rollout_ref.actor.megatron.grad_offload=True left out: this verl has no such") == 1


@pytest.mark.parametrize("verl", HAVE)
def test_where_verl_has_the_option_it_is_set(run_stack: RunStack, verl: str) -> None:
    done = run_stack(COMPOSE.format(overrides=OFFLOAD), verl=verl)
    assert results(done) == ["True"]
    assert "left out" not in done.stderr


@pytest.mark.parametrize("option", ["grad_ofload=True", "megatron_core=1"])
def test_other_unknown_options_are_refused_as_before(run_stack: RunStack, option: str) -> None:
    overrides = [f"actor_rollout_ref.actor.megatron.{option}"]
    done = run_stack(COMPOSE.format(overrides=overrides), verl=LACK[-1], check=False)
    assert done.returncode != 0
    assert "Could not override" in done.stderr


def test_without_the_plugin_the_option_is_refused(run_stack: RunStack) -> None:
    """What the patch is for; when this fails, it can be deleted."""
    done = run_stack(COMPOSE.format(overrides=OFFLOAD), verl=LACK[-1], check=False, VERL_MTP_PLUGIN="off")
    assert done.returncode != 0
    assert "Could not override 'actor_rollout_ref.actor.megatron.grad_offload'" in done.stderr
