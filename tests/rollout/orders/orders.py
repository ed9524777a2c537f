"""Orders of calls that a verl job makes on its servers: functions of :mod:`.sources` one after another.

An order names the servers by their mode, and who is behind each receiver; the steps follow from the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .sources import ALL, table

#: What a receiver's method does to a server. ``weights`` is how new weights come in that server's mode.
STEPS = {
    "sleep": "sleep",
    "sleep_replicas": "sleep",
    "wake_up": "wake_up",
    "abort_replicas": "abort_all_requests",
    "abort_all_requests": "abort_all_requests",
    "resume_generation_replicas": "resume_generation",
    "resume_generation": "resume_generation",
    "clear_kv_cache": "clear_kv_cache",
    "update_weights": "weights",
    "generate_sequences": "generate",
    "do_validate": "generate",
    "start_profile": "start_profile",
    "stop_profile": "stop_profile",
}
#: What only tells the load balancer, or is played by an order of its own.
ELSEWHERE = {"add_replicas", "remove_replicas", "_compute_reward_colocate"}
#: A standalone server's part of ``CheckpointEngineManager.update_weights``, with the weights in the middle.
STANDALONE_SYNC = {
    "0.7.1": ("abort_all_requests", "sleep", "write", "wake_up", "resume_generation"),
    **dict.fromkeys(
        ALL[1:], ("abort_all_requests", "release_kv_cache", "write", "resume_kv_cache", "resume_generation")
    ),
}
#: ``ActorRolloutRefWorker.update_weights`` of a hybrid server, over HTTP.
HYBRID_SYNC = ("resume weights", "write", "resume kv_cache")

H, S, B = ("hybrid",), ("standalone",), ("hybrid", "standalone")
Receivers = Mapping[str, tuple[str, ...]]
Part = tuple[str, Receivers]


@dataclass(frozen=True)
class Order:
    """What one kind of job calls."""

    parts: tuple[Part, ...]  # function of verl, receiver -> servers behind it
    servers: dict[str, str]  # name -> RolloutMode
    releases: tuple[str, ...] = ALL
    asleep: tuple[str, ...] = ()  # servers that sleep at the end
    #: Releases in which verl asks a server to generate that sleeps: the engine dies, or the request waits.
    generates_asleep: tuple[str, ...] = ()
    upstream_fails: bool = False  # as released

    def steps(self, release: str, free_cache_engine: bool = True) -> list[tuple[str, str]]:
        """(server, call), in order."""
        calls = {function: names for (_, function), names in table(release).items()}
        result = []
        for function, receivers in self.parts:
            for call in calls.get(function, []):
                receiver, _, method = call.partition(".")
                if method in ELSEWHERE:
                    continue
                for server in receivers[receiver]:
                    added = [(server, s) for s in self._expanded(STEPS[method], server, release, free_cache_engine)]
                    if result[-len(added) :] != added or len(added) == 1:  # else the other branch of an ``if``
                        result += added
        return result

    def _expanded(self, step: str, server: str, release: str, free_cache_engine: bool) -> tuple[str, ...]:
        if step != "weights":
            return (step,)
        if self.servers[server] == "STANDALONE":
            return STANDALONE_SYNC[release]
        return HYBRID_SYNC if free_cache_engine else ("write",)


def _of(receivers: Receivers, *functions: str) -> tuple[Part, ...]:
    return tuple((function, receivers) for function in functions)


_ONE = dict.fromkeys(("checkpoint_manager", "async_rollout_manager", "agent_loop_manager", "llm_server_manager"), H)
_ALONE = dict.fromkeys(_ONE, S)
_FULLY = {"hybrid_checkpoint_manager": H, "checkpoint_manager": S, "rollouter": B, "replica": B}
_SEPARATE = {"checkpoint_manager": H, "standalone_checkpoint_manager": S}
_REWARD = dict.fromkeys(("self", "reward_model_manager"), ("reward",))

ORDERS = {
    "synchronous": Order(
        _of(_ONE, "RayPPOTrainer.init_workers", "RayPPOTrainer.fit", "RayPPOTrainer._validate"),
        {"hybrid": "HYBRID"},
        generates_asleep=("0.7.1",),  # REMAX: a second batch after the server was put to sleep
    ),
    "main_ppo_sync": Order(
        _of(
            _ONE,
            "PPOTrainer.init_workers",
            "PPOTrainer.fit",
            "PPOTrainer.step",
            "PPOTrainer.fit",
            "PPOTrainer._validate",
        ),
        {"hybrid": "HYBRID"},
        ALL[1:2],
    ),
    "v1 synchronous": Order(
        _of(
            _ONE,
            *("PPOTrainer._setup", "PPOTrainerSync.on_init_end", "PPOTrainer._validate"),
            *2 * ("PPOTrainerSync.on_sample_end", "PPOTrainerSync.on_step_end"),
        ),
        {"hybrid": "HYBRID"},
        ALL[2:],
    ),
    "v1 colocated, asynchronous": Order(
        _of(
            _ONE,
            *("PPOTrainer._setup", "PPOTrainerColocateAsync.on_init_end"),
            *2 * ("PPOTrainerColocateAsync.on_sample_end", "PPOTrainerColocateAsync.on_step_end"),
        ),
        {"hybrid": "HYBRID"},
        ALL[2:],
    ),
    "v1 separate, asynchronous": Order(
        _of(
            _SEPARATE,
            *("PPOTrainer._setup", "PPOTrainerSeparateAsync.on_init_end"),
            *2
            * (
                "PPOTrainerSeparateAsync.switch_to_trainer",
                "PPOTrainerSeparateAsync.on_step_end",
                "PPOTrainerSeparateAsync.switch_to_rollout",
            ),
            "PPOTrainerSeparateAsync.switch_to_trainer",
        ),
        {"hybrid": "HYBRID", "standalone": "STANDALONE"},
        ALL[2:],
        asleep=H,
    ),
    "one step off": Order(
        _of(_ALONE, "SeparateRayPPOTrainer.fit", *2 * ("SeparateRayPPOTrainer._fit_update_weights",)),
        {"standalone": "STANDALONE"},
    ),
    # Their common base, whose trainers have a _fit_generate of their own: the cache is released twice.
    "separation": Order(
        _of(
            _ALONE,
            "SeparateRayPPOTrainer.fit",
            *2 * ("SeparateRayPPOTrainer._fit_generate", "SeparateRayPPOTrainer._fit_update_weights"),
        ),
        {"standalone": "STANDALONE"},
        generates_asleep=("0.7.1",),
        upstream_fails=True,
    ),
    "fully asynchronous, validation on the trainer": Order(
        _of(
            _FULLY,
            *("FullyAsyncTrainer._setup_hybrid_checkpoint_manager", "FullyAsyncTrainer._fit_update_weights"),
            *2 * ("FullyAsyncTrainer._trainer_side_validate", "FullyAsyncTrainer._fit_update_weights"),
        ),
        {"hybrid": "HYBRID", "standalone": "STANDALONE"},
        ALL[1:],
        asleep=H,
    ),
    "fully asynchronous, dynamic": Order(
        _of(
            _FULLY,
            "FullyAsyncTrainer._setup_hybrid_checkpoint_manager",
            *2
            * (
                "FullyAsyncTrainer._fit_update_weights",
                "DynamicResourceController.sync_hybrid_weights",
                "DynamicResourceController.activate_hybrid_replicas",
                "FullyAsyncRollouter.rebalance_requests",
                "DynamicResourceController.deactivate_hybrid_replicas",
            ),
        ),
        {"hybrid": "HYBRID", "standalone": "STANDALONE"},
        ALL[2:],
        asleep=H,
    ),
    "reward model on the trainer's GPUs": Order(
        _of(_REWARD, "RewardModelManager.__init__", *2 * ("RewardLoopManager.compute_rm_score",)),
        {"reward": "COLOCATED"},
        asleep=("reward",),
    ),
    "reward model of its own": Order(
        _of(_REWARD, "RewardModelManager.__init__", *2 * ("RewardLoopManager.compute_rm_score",)),
        {"reward": "STANDALONE"},
        asleep=("reward",),
    ),
    "agent loops": Order(
        (*_of({"replica": S}, "AgentLoopManager.clear_kv_cache"), *_of(_ALONE, "SeparateRayPPOTrainer.fit")),
        {"standalone": "STANDALONE"},
        ALL[:1],
    ),
}


@dataclass(frozen=True)
class Steps:
    """Calls that no function of verl's makes in this order, but a user's trainer, or a job after an error."""

    mode: str
    calls: tuple[str, ...]
    upstream_fails: bool = False
    releases: tuple[str, ...] = ALL[1:]  # 0.7.1 lacks methods as released


_HYBRID_BACK = HYBRID_SYNC
OTHERS = {
    "sleep twice": Steps("HYBRID", ("sleep", "sleep", *_HYBRID_BACK, "generate"), upstream_fails=True),
    "wake twice": Steps("COLOCATED", ("sleep", "wake_up", "wake_up", "generate"), upstream_fails=True),
    "release twice": Steps(
        "STANDALONE", ("release_kv_cache", "release_kv_cache", "resume_kv_cache", "generate"), upstream_fails=True
    ),
    "resume without release": Steps(
        "STANDALONE", ("resume_kv_cache", "resume_generation", "generate"), upstream_fails=True
    ),
    "abort twice, resume once": Steps(
        "STANDALONE", ("abort_all_requests", "abort_all_requests", "resume_generation", "generate")
    ),
    "resume twice": Steps("STANDALONE", ("abort_all_requests", "resume_generation", "resume_generation", "generate")),
    "resumed before its memory": Steps(
        "HYBRID", ("abort_all_requests", "sleep", "resume_generation", *_HYBRID_BACK, "generate")
    ),
    "resumed before its cache": Steps(
        "STANDALONE",
        ("abort_all_requests", "release_kv_cache", "resume_generation", "write", "resume_kv_cache", "generate"),
    ),
    "resumed without its memory, aborted again": Steps(
        "HYBRID",
        ("abort_all_requests", "sleep", "resume_generation", "abort_all_requests", *_HYBRID_BACK, "resume_generation"),
    ),
    "aborted while it sleeps": Steps(
        "HYBRID", ("sleep", "abort_all_requests", *_HYBRID_BACK, "resume_generation", "generate")
    ),
    "slept, not paused, resumed": Steps("HYBRID", ("sleep", "resume_generation", *_HYBRID_BACK, "generate")),
    "weights without a pause": Steps("STANDALONE", ("generate", "write", "generate", "clear_kv_cache", "generate")),
}
