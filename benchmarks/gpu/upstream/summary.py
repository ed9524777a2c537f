"""The numbers of a variant that a reader compares: medians over its steps, without those that warm up."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, median
from typing import Any, Final

#: Steps at the beginning that compile, capture and fill caches.
WARM_UP: Final = 1
SYNC: Final = ("timing_s/update_weights", "timing_s/timing_s/param_sync", "timing_s/param_sync")
PREDICTED: Final = ("actor/mtp/top1_acceptance_depth1", "mtp/top1_acceptance_depth1")
#: What the MTP layer's training must not change where it is detached.
POLICY: Final = ("actor/pg_loss", "actor/entropy", "actor/grad_norm", "training/rollout_probs_diff_mean")
LOSS: Final = ("actor/mtp_losses/mtp_1_loss", "mtp_losses/mtp_1_loss", "actor/mtp/loss_depth1")


def column(variant: Mapping[str, Any], *names: str) -> list[float]:
    """The first of these metrics that the variant has, in the order of its steps."""
    for name in names:
        values = [value for value in variant["steps"].get(name, ()) if value is not None]
        if values:
            return values
    return []


def typical(variant: Mapping[str, Any], *names: str) -> float | None:
    """The median after the warm-up (of all, where there is nothing else)."""
    values = column(variant, *names)
    return median(values[WARM_UP:] or values) if values else None


def longest(variant: Mapping[str, Any], *names: str) -> float | None:
    """The largest after the warm-up: what a median hides."""
    values = column(variant, *names)
    return max(values[WARM_UP:] or values) if values else None


def ends(variant: Mapping[str, Any], *names: str, over: int = 3) -> tuple[float, float] | None:
    """Means over the first and the last steps."""
    values = column(variant, *names)
    return (mean(values[:over]), mean(values[-over:])) if values else None


#: What runs that shared their GPUs with others do not tell.
TIMES: Final = (
    "first_step_s", "step_s", "gen_s", "old_log_prob_s", "update_actor_s", "sync_s", "decode_tokens_per_s",
    "busy_tokens_per_s", "peak_mib", "idle_ratio", "sync_max_s",
)  # fmt: skip


def of(variant: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables show. None where the run does not say."""
    decode = variant.get("decode", {})
    found: dict[str, Any] = {
        "ended_well": variant["status"] == 0,
        "cut_off": variant["timed_out"],
        "steps": sum(step > 0 for step in variant["steps"].get("step", ())),
        "wall_s": variant["wall_s"],
        "first_step_s": variant["startup_s"].get("first_step"),
        "step_s": typical(variant, "timing_s/step", "perf/time_per_step"),
        "gen_s": typical(variant, "timing_s/gen"),
        "old_log_prob_s": typical(variant, "timing_s/old_log_prob"),
        "update_actor_s": typical(variant, "timing_s/update_actor"),
        "sync_s": typical(variant, *SYNC),
        "sync_max_s": longest(variant, *SYNC),
        "decode_tokens_per_s": decode.get("tokens_per_s"),
        "busy_tokens_per_s": decode.get("busy_tokens_per_s"),
        "served_rate": decode.get("accept_rate"),
        "served_length": decode.get("accept_length"),
        "reported_rate": typical(variant, "rollout/spec_accept_rate"),
        "reported_length": typical(variant, "rollout/spec_accept_length"),
        "predicted_rate": typical(variant, *PREDICTED),
        "mtp_loss": ends(variant, *LOSS),
        "reward": ends(variant, "critic/rewards/mean", "critic/score/mean"),
        "probs_diff": typical(variant, "training/rollout_probs_diff_mean"),
        "probs_correlation": typical(variant, "training/rollout_actor_probs_pearson_corr"),
        "grad_norm": typical(variant, "actor/grad_norm"),
        "ppo_kl": typical(variant, "actor/ppo_kl"),
        "peak_mib": max(variant.get("peak_mib", {}).values(), default=None),
        "idle_ratio": typical(variant, "fully_async/rollouter/idle_ratio"),
        "script_unchanged": not variant["lines_left_out_of_the_script"],
    }
    for name in ("pause_s", "drain_s", "kv_release_s", "transfer_s", "kv_resume_s", "kv_freed_gib", "aborted_requests"):
        found[f"weight_sync_{name}"] = typical(variant, f"weight_sync/{name}")
        found[f"weight_sync_{name}_max"] = longest(variant, f"weight_sync/{name}")
    return found | (dict.fromkeys(TIMES) if variant.get("shared_gpus") else {})


def apart(variant: Mapping[str, Any], base: Mapping[str, Any], metric: str) -> float | None:
    """The largest difference of a metric from that of ``base`` at the same step, over the largest value of ``base``."""
    pairs = [
        (a, b)
        for a, b in zip(variant["steps"].get(metric, ()), base["steps"].get(metric, ()))
        if a is not None and b is not None
    ]
    scale = max((abs(b) for _, b in pairs), default=0.0)
    return max(abs(a - b) for a, b in pairs) / scale if scale else None


def difference(variant: Mapping[str, Any]) -> list[float]:
    """Served less predicted acceptance of each step that has both."""
    steps = variant["steps"]
    served, predicted = steps.get("rollout/spec_accept_rate", ()), steps.get(PREDICTED[0], ())
    return [s - p for s, p in zip(served, predicted) if s is not None and p is not None]
