"""Which controls of its rollout servers each function of verl calls, in which order: as data, checked against verl.

A call is ``receiver.method``, as it is written in verl's source; control flow is not told. :func:`found` reads the
same from an installed release, so a function that is new or has changed is a test that fails.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Methods that stop, start, empty or fill servers, and those that make them generate.
CONTROLS = frozenset(
    {
        *("sleep", "wake_up", "release_kv_cache", "resume_kv_cache", "clear_kv_cache", "update_weights"),
        *("abort_all_requests", "abort_request", "resume_generation", "add_replicas", "remove_replicas"),
        *("sleep_replicas", "wake_up_replicas", "abort_replicas", "resume_generation_replicas"),
        *("release_kv_cache_replicas", "resume_kv_cache_replicas"),
    }
)
GENERATES = frozenset(
    {"generate_sequences", "do_validate", "_compute_reward_colocate", "start_profile", "stop_profile"}
)
#: Receivers of methods of these names that are no servers.
OTHERS = frozenset({"time", "asyncio", "training_client"})
#: Where verl's entry points are.
FOLDERS = ("trainer", "experimental", "checkpoint_engine/base.py")
ALL = ("0.7.1", "0.8.0", "0.9.0", "0.9.1")


@dataclass(frozen=True)
class Source:
    """One function of verl."""

    file: str  # below verl/
    function: str
    calls: str  # separated by blanks
    releases: tuple[str, ...] = ALL


MANAGER = "checkpoint_engine/base.py"
TRAINER = "trainer/ppo/ray_trainer.py"
SEPARATION = "experimental/separation/ray_trainer.py"
FULLY_ASYNC = "experimental/fully_async_policy/fully_async_trainer.py"
ROLLOUTER = "experimental/fully_async_policy/fully_async_rollouter.py"
DYNAMIC = "experimental/fully_async_policy/dynamic_schedule/dynamic_resource_controller.py"
V1 = "trainer/ppo/v1"

_VALIDATE = (
    "async_rollout_manager.generate_sequences checkpoint_manager.sleep_replicas self._compute_reward_colocate "
    "checkpoint_manager.update_weights"
)
_SYNC = "self.abort_replicas self.release_kv_cache_replicas {0}.update_weights rollout.update_weights "
_TRAINER_SIDE = (
    "hybrid_checkpoint_manager.update_weights checkpoint_manager.abort_replicas "
    "hybrid_checkpoint_manager.abort_replicas rollouter.add_replicas checkpoint_manager.resume_generation_replicas "
    "hybrid_checkpoint_manager.resume_generation_replicas rollouter.do_validate checkpoint_manager.abort_replicas "
    "hybrid_checkpoint_manager.abort_replicas rollouter.remove_replicas hybrid_checkpoint_manager.sleep_replicas "
    "checkpoint_manager.resume_generation_replicas hybrid_checkpoint_manager.resume_generation_replicas"
)

SOURCES = (
    Source(MANAGER, "CheckpointEngineManager.sleep_replicas", "r.sleep"),
    Source(MANAGER, "CheckpointEngineManager.wake_up_replicas", "r.wake_up"),
    Source(MANAGER, "CheckpointEngineManager.abort_replicas", "r.abort_all_requests", ALL[1:]),
    Source(MANAGER, "CheckpointEngineManager.resume_generation_replicas", "r.resume_generation", ALL[1:]),
    Source(MANAGER, "CheckpointEngineManager.release_kv_cache_replicas", "r.release_kv_cache", ALL[1:]),
    Source(MANAGER, "CheckpointEngineManager.resume_kv_cache_replicas", "r.resume_kv_cache", ALL[1:]),
    Source(MANAGER, "CheckpointEngineWorker.update_weights", "server_adapter.update_weights"),
    # The first call is the one of the backend "naive".
    Source(
        MANAGER,
        "CheckpointEngineManager.update_weights",
        "trainer.update_weights r.abort_all_requests self.sleep_replicas trainer.update_weights rollout.update_weights "
        "self.wake_up_replicas r.resume_generation",
        ALL[:1],
    ),
    *(
        Source(
            MANAGER,
            "CheckpointEngineManager.update_weights",
            f"{sender}.update_weights {_SYNC.format(sender)}"
            "self.resume_kv_cache_replicas self.resume_generation_replicas",
            releases,
        )
        for sender, releases in (("trainer", ALL[1:2]), ("actor_wg", ALL[2:]))
    ),
    # Synchronous trainers; with a reward model on the same GPUs while they validate
    Source(TRAINER, "RayPPOTrainer.init_workers", "checkpoint_manager.sleep_replicas"),
    Source(TRAINER, "RayPPOTrainer._validate", _VALIDATE),
    Source(
        TRAINER,
        "RayPPOTrainer.fit",
        "checkpoint_manager.update_weights "
        + 2
        * "async_rollout_manager.start_profile async_rollout_manager.generate_sequences "
        "checkpoint_manager.sleep_replicas async_rollout_manager.stop_profile "
        + "self._compute_reward_colocate self._compute_reward_colocate checkpoint_manager.update_weights",
        ALL[:1],
    ),
    Source(
        TRAINER,
        "RayPPOTrainer.fit",
        "checkpoint_manager.update_weights llm_server_manager.start_profile async_rollout_manager.generate_sequences "
        "checkpoint_manager.sleep_replicas llm_server_manager.stop_profile self._compute_reward_colocate "
        "self._compute_reward_colocate checkpoint_manager.update_weights checkpoint_manager.update_weights",
        ALL[1:],
    ),
    Source("trainer/main_ppo_sync.py", "PPOTrainer.init_workers", "checkpoint_manager.sleep_replicas", ALL[1:2]),
    Source("trainer/main_ppo_sync.py", "PPOTrainer._validate", _VALIDATE, ALL[1:2]),
    Source("trainer/main_ppo_sync.py", "PPOTrainer.fit", 2 * "checkpoint_manager.update_weights ", ALL[1:2]),
    Source(
        "trainer/main_ppo_sync.py",
        "PPOTrainer.step",
        "async_rollout_manager.generate_sequences checkpoint_manager.sleep_replicas self._compute_reward_colocate",
        ALL[1:2],
    ),
    Source(f"{V1}/trainer_base.py", "PPOTrainer._setup", "checkpoint_manager.sleep_replicas", ALL[2:]),
    Source(
        f"{V1}/trainer_base.py",
        "PPOTrainer._validate",
        _VALIDATE.replace("async_rollout_manager", "agent_loop_manager"),
        ALL[2:],
    ),
    Source(f"{V1}/trainer_sync.py", "PPOTrainerSync.on_init_end", "checkpoint_manager.update_weights", ALL[2:]),
    Source(f"{V1}/trainer_sync.py", "PPOTrainerSync.on_step_end", "checkpoint_manager.update_weights", ALL[2:]),
    Source(f"{V1}/trainer_sync.py", "PPOTrainerSync.on_sample_end", "checkpoint_manager.sleep_replicas", ALL[2:]),
    # Partial rollout on the trainer's GPUs
    Source(
        f"{V1}/trainer_colocate_async.py",
        "PPOTrainerColocateAsync.on_init_end",
        "checkpoint_manager.update_weights",
        ALL[2:],
    ),
    Source(
        f"{V1}/trainer_colocate_async.py",
        "PPOTrainerColocateAsync.on_step_end",
        "checkpoint_manager.update_weights checkpoint_manager.resume_generation_replicas",
        ALL[2:],
    ),
    Source(
        f"{V1}/trainer_colocate_async.py",
        "PPOTrainerColocateAsync.on_sample_end",
        "checkpoint_manager.abort_replicas checkpoint_manager.sleep_replicas",
        ALL[2:],
    ),
    # Standalone servers, and hybrid ones that change sides
    Source(
        f"{V1}/trainer_separate_async.py",
        "PPOTrainerSeparateAsync.on_init_end",
        "standalone_checkpoint_manager.update_weights checkpoint_manager.update_weights",
        ALL[2:],
    ),
    Source(
        f"{V1}/trainer_separate_async.py",
        "PPOTrainerSeparateAsync.on_step_end",
        "standalone_checkpoint_manager.update_weights",
        ALL[2:],
    ),
    Source(
        f"{V1}/trainer_separate_async.py",
        "PPOTrainerSeparateAsync.switch_to_rollout",
        "checkpoint_manager.update_weights checkpoint_manager.resume_generation_replicas",
        ALL[2:],
    ),
    Source(
        f"{V1}/trainer_separate_async.py",
        "PPOTrainerSeparateAsync.switch_to_trainer",
        "checkpoint_manager.abort_replicas checkpoint_manager.sleep_replicas",
        ALL[2:],
    ),
    # One step off and its base
    Source(SEPARATION, "SeparateRayPPOTrainer.fit", "checkpoint_manager.update_weights"),
    Source(SEPARATION, "SeparateRayPPOTrainer._fit_update_weights", "checkpoint_manager.update_weights"),
    Source(
        SEPARATION,
        "SeparateRayPPOTrainer._fit_generate",
        2 * "async_rollout_manager.start_profile async_rollout_manager.generate_sequences "
        "checkpoint_manager.sleep_replicas async_rollout_manager.stop_profile " + "self._compute_reward_colocate",
        ALL[:1],
    ),
    Source(
        SEPARATION,
        "SeparateRayPPOTrainer._fit_generate",
        "async_rollout_manager.start_profile async_rollout_manager.generate_sequences "
        "checkpoint_manager.sleep_replicas llm_server_manager.stop_profile self._compute_reward_colocate",
        ALL[1:],
    ),
    # Fully asynchronous
    Source(FULLY_ASYNC, "FullyAsyncTrainer._fit_update_weights", "checkpoint_manager.update_weights", ALL[1:]),
    Source(
        FULLY_ASYNC,
        "FullyAsyncTrainer._setup_hybrid_checkpoint_manager",
        "hybrid_checkpoint_manager.sleep_replicas",
        ALL[1:],
    ),
    Source(FULLY_ASYNC, "FullyAsyncTrainer._trainer_side_validate", _TRAINER_SIDE, ALL[1:]),
    Source(ROLLOUTER, "FullyAsyncRollouter.add_replicas", "llm_server_manager.add_replicas", ALL[1:]),
    Source(ROLLOUTER, "FullyAsyncRollouter.remove_replicas", "llm_server_manager.remove_replicas", ALL[1:]),
    Source(
        ROLLOUTER,
        "FullyAsyncRollouter.rebalance_requests",
        "replica.abort_all_requests replica.resume_generation",
        ALL[2:],
    ),
    Source(
        DYNAMIC,
        "DynamicResourceController.sync_hybrid_weights",
        "hybrid_checkpoint_manager.abort_replicas hybrid_checkpoint_manager.update_weights "
        "hybrid_checkpoint_manager.resume_generation_replicas",
        ALL[2:],
    ),
    Source(
        DYNAMIC,
        "DynamicResourceController.activate_hybrid_replicas",
        "rollouter.add_replicas hybrid_checkpoint_manager.resume_generation_replicas",
        ALL[2:],
    ),
    Source(
        DYNAMIC,
        "DynamicResourceController.deactivate_hybrid_replicas",
        "rollouter.remove_replicas hybrid_checkpoint_manager.abort_replicas hybrid_checkpoint_manager.sleep_replicas",
        ALL[2:],
    ),
    # Reward models; teachers (0.8.0 and later) are colocated servers that nobody puts to sleep
    Source("experimental/reward_loop/reward_model.py", "RewardModelManager.__init__", "self.sleep"),
    Source("experimental/reward_loop/reward_model.py", "RewardModelManager.sleep", "replica.sleep"),
    Source("experimental/reward_loop/reward_model.py", "RewardModelManager.wake_up", "replica.wake_up"),
    Source(
        "experimental/reward_loop/reward_loop.py",
        "RewardLoopManager.compute_rm_score",
        "reward_model_manager.wake_up reward_model_manager.sleep",
    ),
    Source(
        "experimental/agent_loop/agent_loop.py", "AgentLoopManager.clear_kv_cache", "replica.clear_kv_cache", ALL[:1]
    ),
)


def table(release: str) -> dict[tuple[str, str], list[str]]:
    """What :data:`SOURCES` says of a release."""
    return {(s.file, s.function): s.calls.split() for s in SOURCES if release in s.releases}


def found(package: Path) -> dict[tuple[str, str], list[str]]:
    """The same, from the source of an installed verl; ``package`` is its folder ``verl``."""
    calls = {}
    for folder in FOLDERS:
        path = package / folder
        for file in [path] if path.suffix else sorted(path.rglob("*.py")):
            for function, names in _calls(ast.parse(file.read_text())):
                if CONTROLS & {name.partition(".")[2] for name in names}:
                    calls[(str(file.relative_to(package)), function)] = names
    return calls


def _calls(module: ast.Module) -> Iterator[tuple[str, list[str]]]:
    for owner in ast.walk(module):
        if not isinstance(owner, ast.ClassDef):
            continue
        for function in owner.body:
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{owner.name}.{function.name}", _in_order(function)


def _in_order(function: ast.AST) -> list[str]:
    named = []
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in CONTROLS | GENERATES:
            receiver = ast.unparse(node.value).rpartition(".")[2]
            if receiver not in OTHERS:
                named.append((node.lineno, node.col_offset, f"{receiver}.{node.attr}"))
    return [name for *_, name in sorted(named)]
