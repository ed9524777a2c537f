"""Which speculative workers load which model on verl's route, in each release of SGLang; with the patches, all do."""

from __future__ import annotations

from typing import Any, Final

import pytest

from .releases import SGLANG, ask

BOTH, DRAFT, TARGET, NONE = [True, True], [False, True], [True, False], [False, False]
SESSION: Final = dict.fromkeys(
    (
        "EAGLEWorkerV2",
        "StandaloneWorkerV2",
        "MultiLayerEagleWorkerV2",
        "FrozenKVMTPWorkerV2",
        "NGRAMWorker",
        "DFlashWorkerV2",
    ),
    BOTH,
)
#: (target, draft) as released. A worker that is not listed does not exist in that release.
ROUTES: Final[dict[str, dict[str, list[bool]]]] = {
    "0.5.6": {"EAGLEWorker": BOTH, "EAGLEWorkerV2": BOTH, "StandaloneWorker": BOTH, "NGRAMWorker": NONE},
    "0.5.8": {
        "EAGLEWorker": BOTH,
        "EAGLEWorkerV2": BOTH,
        "StandaloneWorker": BOTH,
        "StandaloneWorkerV2": BOTH,
        "MultiLayerEagleWorker": DRAFT,
        "MultiLayerEagleWorkerV2": NONE,
        "NGRAMWorker": NONE,
    },
    "0.5.12.post1": {
        "EAGLEWorker": BOTH,
        "EAGLEWorkerV2": BOTH,
        "StandaloneWorker": BOTH,
        "StandaloneWorkerV2": BOTH,
        "MultiLayerEagleWorkerV2": NONE,
        "FrozenKVMTPWorker": DRAFT,
        "FrozenKVMTPWorkerV2": DRAFT,
        "NGRAMWorker": TARGET,
        "DFlashWorker": TARGET,
    },
    "0.5.20": SESSION | {"MultiLayerEagleWorkerV2": NONE, "NGRAMWorker": TARGET, "DFlashWorkerV2": TARGET},
    "0.5.21": SESSION,
    "0.5.22": SESSION,
    "0.5.23": SESSION,
}
#: Workers whose drafter is a model of its own, which no trainer of verl's has: they are left as they are.
OTHERS_DRAFTER: Final = ("DFlashWorker", "DFlashWorkerV2")
SENT: Final = ["weight", "other"]
LOADED: Final = [1.0, 2.0, 3.0, 4.0]


def of(release: str) -> Any:
    return ask("scheduler_worker", sglang=release)


@pytest.mark.parametrize("release", SGLANG)
def test_routes_are_found_by_trying(release: str) -> None:
    assert of(release)["routes"] == ROUTES[release]


def test_one_worker_cannot_even_be_imported() -> None:
    # Its module names ModelRunner outside of TYPE_CHECKING.
    assert of("0.5.12.post1")["not_importable"] == {
        "MultiLayerEagleWorker": "NameError: name 'ModelRunner' is not defined"
    }
    assert all(not of(release)["not_importable"] for release in SGLANG if release != "0.5.12.post1")


@pytest.mark.parametrize("release", SGLANG)
def test_what_the_probe_says_is_what_happens(release: str) -> None:
    """As released, on the real classes. Where both load, the second finds the handles used up (test_handles)."""
    for name, outcome in of(release)["bare"]["update"].items():
        target, draft = ROUTES[release][name]
        drafts = [loaded for loaded in outcome["draft"] if loaded]
        if not target and not draft:
            assert "has no attribute 'update_weights_from_tensor'" in outcome["error"], name
        elif target and draft and outcome["draft"]:
            assert outcome["error"].startswith("EOFError"), name
        else:
            assert outcome["success"] is True, name
            assert outcome["target"] == (SENT if target else []), name
            # Of several draft models the first alone, in a release that has such a worker.
            assert drafts == ([SENT] if draft and outcome["draft"] else []), name


@pytest.mark.parametrize("release", SGLANG)
def test_with_the_patches_every_model_gets_every_tensor(release: str) -> None:
    outcomes = of(release)["patched"]["update"]
    assert set(outcomes) == set(ROUTES[release])
    for name, outcome in outcomes.items():
        assert (outcome["success"], outcome["error"]) == (True, ""), name
        assert outcome["target"] == SENT, name
        assert outcome["worker_is_back"], name
        if name in OTHERS_DRAFTER and ROUTES[release][name] == TARGET:
            assert outcome["draft"] == [[]], name
            continue
        assert outcome["draft"] == [SENT] * len(outcome["draft"]), name
        assert outcome["weights"] == [LOADED] * (len(outcome["draft"]) + 1), name


@pytest.mark.parametrize("release", SGLANG)
def test_where_the_patches_are(release: str) -> None:
    decisions = of(release)["patches"]
    old = release in ("0.5.6", "0.5.8", "0.5.12.post1")  # before the scheduler's parts became files of their own
    for kind in ("update", "questions"):
        assert decisions[f"rollout.sglang.{kind}.mixin"] == ("applied" if old else "armed")
        assert decisions[f"rollout.sglang.{kind}.manager"] == ("armed" if old else "applied")
    assert decisions["rollout.sglang.handles.runner"] == ("applied" if old else "not_needed")
    assert decisions["rollout.sglang.handles.updater"] == ("armed" if old else "applied")
    assert decisions["rollout.sglang.retract"] == ("not_needed" if release in ("0.5.6", "0.5.8") else "applied")
