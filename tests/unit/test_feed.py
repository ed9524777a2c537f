"""What a weight sync owes the drafter, by names alone. The adapters around it are tested on verl's own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verl_mtp_plugin.errors import WeightSyncError
from verl_mtp_plugin.rollout.feed import DELTA, Feed, feed_of, load_format

TRUNK = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight")
LAYER = ("eh_proj.weight", "enorm.weight", "shared_head.norm.weight", "mlp.experts.0.up_proj.weight")


def adapter(architecture: str = "DeepseekV3ForCausalLM", *, folder: Path | None = None, **mtp: Any) -> Any:
    """As much of verl's as is asked."""
    asked = {"enable": True, "enable_train": True, "enable_rollout": True, **mtp}
    hf_config = SimpleNamespace(architectures=[architecture], num_hidden_layers=2, num_nextn_predict_layers=3)
    return SimpleNamespace(
        config=SimpleNamespace(name="sglang", mtp=SimpleNamespace(**asked)),
        model_config=SimpleNamespace(hf_config=hf_config, local_path=None if folder is None else str(folder)),
        replica_rank=1,
    )


def synced(feed: Feed, items: Any, steps: int = 1) -> str:
    """The error of a sync of these items, or "ok"; a frozen drafter is the checkpoint's."""

    async def ask() -> str:
        return "auto"

    assert list(feed.watch(iter(items))) == list(items)
    try:
        asyncio.run(feed.settle(ask, steps))
    except WeightSyncError as error:
        return error.found
    return "ok"


def names(*layers: int, suffixes: tuple[str, ...] = LAYER) -> list[str]:
    return [f"model.layers.{2 + layer}.{suffix}" for layer in layers for suffix in suffixes]


def pairs(*parts: Any) -> list[tuple[str, int]]:
    return [(name, 0) for part in parts for name in part]


def checkpoint(folder: Path, *more: str) -> Path:
    """A folder with the index of a checkpoint of three MTP layers, with copies, scales and a bias."""
    copies = names(0, 1, 2, suffixes=("embed_tokens.weight", "shared_head.head.weight"))
    others = names(0, suffixes=("eh_proj.weight_scale_inv", "mlp.gate.e_score_correction_bias"))
    every = (*TRUNK, *names(0, 1, 2), *copies, *others, *more)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(every, "a")}))
    return folder


def test_a_layer_that_the_drafter_runs_must_come() -> None:
    assert synced(Feed(adapter()), pairs(TRUNK, names(0))) == "ok"
    assert synced(Feed(adapter()), pairs(TRUNK, names(0, 1, 2)), steps=3) == "ok"
    assert synced(Feed(adapter()), pairs(TRUNK, names(0, 2)), steps=3) == (
        "replica 1: the drafter runs 3 MTP layers, and the trainer sent none of layer 1 "
        "(names that begin with model.layers.2., model.layers.3., ...)"
    )


def test_a_weight_of_the_checkpoints_that_does_not_come_is_named(tmp_path: Path) -> None:
    at = adapter(folder=checkpoint(tmp_path))
    assert synced(Feed(at), pairs(TRUNK, names(0, 1, 2))) == "ok"
    # Fewer layers are trained than the checkpoint has; the drafter runs one.
    assert synced(Feed(at), pairs(TRUNK, names(0))) == "ok"
    wrapped = [name.replace("eh_proj.", "eh_proj.base_layer.") for name in names(0)]
    assert synced(Feed(at), pairs(TRUNK, wrapped)) == "ok"
    assert synced(Feed(at), pairs(TRUNK, names(0)[1:])) == (
        "replica 1: the trainer sent 3 MTP tensors of the checkpoint, and not model.layers.2.eh_proj.weight"
    )


def test_a_stream_with_names_of_its_own_is_not_counted(tmp_path: Path) -> None:
    """Experts in one tensor, say: what the server's loader knows of them is its business."""
    at = adapter(folder=checkpoint(tmp_path))
    assert synced(Feed(at), pairs(TRUNK, names(0)[:3], ["model.layers.2.mlp.experts.up_proj"])) == "ok"


@pytest.mark.parametrize("content", [None, "not an index"])
def test_a_checkpoint_that_cannot_be_read_is_no_reason_to_stop(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "model.safetensors.index.json").write_text(content)
    assert synced(Feed(adapter(folder=tmp_path / "none" if content is None else tmp_path)), pairs(names(0))) == "ok"


@pytest.mark.parametrize(
    "name",
    ["mtp.fc.weight", "model.mtp_layers.0.x.weight", "nextn.0.x.weight", "model.layers.2.x.weight", "a.eh_proj.weight"],
)
def test_names_of_a_family_that_nobody_has_described(name: str) -> None:
    assert synced(Feed(adapter("LabForCausalLM")), pairs(TRUNK, [name])) == "ok"
    found = synced(Feed(adapter("LabForCausalLM")), pairs(TRUNK))
    assert found == (
        "replica 1: MTP is trained (mtp.enable_train=True), and the trainer sent none of its tensors (names with mtp "
        "or nextn, or of layers behind the trunk's: nobody has described this model's)"
    )


# -- the changes of verl's delta_sharded -------------------------------------------------------------------------------


class Bytes:
    """A uint8 tensor, as far as it is read."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def cpu(self) -> Bytes:
        return self

    def tolist(self) -> list[int]:
        return list(self._content)


def flush(encoding: str, *parts: Any, last: bool = True) -> Any:
    """One message: ``DeltaShardedCheckpointEngine.receive_weights`` yields such."""
    params = [{"name": name, "shape": [1]} for name, _ in pairs(*parts)]
    spec = json.dumps({"encoding": encoding, "params": params, "checksum": 0}).encode()
    return [("__delta_spec__", Bytes(spec)), ("__values__", object())], last


def test_of_changes_the_first_whole_sync_is_judged_and_no_other() -> None:
    assert synced(Feed(adapter(), delta=True), [flush("dense", TRUNK, last=False), flush("dense", names(0))]) == "ok"
    unfed = synced(Feed(adapter(), delta=True), [flush("dense", TRUNK)])
    assert "the trainer sent none of its tensors" in unfed
    assert synced(Feed(adapter(), delta=True), [flush("indices", TRUNK)]) == "ok"
    assert synced(Feed(adapter(), delta=True), []) == "ok"


# -- what the drafter was loaded with ---------------------------------------------------------------------------------


class Server:
    """A server's handle, of a process with the plugin."""

    def __init__(self, answer: str) -> None:
        async def remote() -> str:
            return answer

        self.mtp_load_format = SimpleNamespace(remote=remote)


@pytest.mark.parametrize(
    ("server", "config", "expected"),
    [
        (None, {"load_format": "dummy"}, None),  # a rank that has none
        (Server("auto"), {"load_format": "dummy"}, "auto"),  # verl changed it in the server's process
        (Server("dummy"), {"load_format": "auto"}, "dummy"),
        (object(), {}, None),
        (object(), {"load_format": "safetensors"}, "safetensors"),
        (object(), {"load_format": "dummy"}, "dummy"),
        (object(), {"load_format": "dummy", "backend": "nccl"}, None),
        (object(), {"load_format": "dummy", "engine_kwargs": {"sglang": {"load_format": "auto"}}}, "auto"),
        (object(), {"load_format": "auto", "engine_kwargs": {"sglang": None}}, "auto"),
    ],
)
def test_what_the_drafter_was_loaded_with(server: Any, config: dict[str, Any], expected: str | None) -> None:
    at = adapter()
    backend = config.pop("backend", "naive")
    vars(at.config).update(config, checkpoint_engine=SimpleNamespace(backend=backend))
    assert asyncio.run(load_format(at, server)) == expected


# -- which syncs are looked at -----------------------------------------------------------------------------------------


def test_which_syncs_are_watched() -> None:
    assert feed_of(adapter(), 3, wire_format=DELTA)._delta is True  # type: ignore[union-attr]
    assert feed_of(adapter(), 3)._delta is False  # type: ignore[union-attr]
    assert feed_of(adapter(), peft_config={"r": 1}, base_sync_done=False) is not None
    for kwargs in ({"peft_config": {"r": 1}, "base_sync_done": True}, {"wire_format": "of_tomorrow"}):
        assert feed_of(adapter(), **kwargs) is None
    for mtp in ({"enable": False}, {"enable_rollout": False}, {"speculative_algorithm": "NGRAM"}):
        assert feed_of(adapter(**mtp)) is None
    without = adapter()
    without.config.mtp = None
    assert feed_of(without) is None


def test_a_stream_is_passed_on_one_by_one_and_nothing_is_kept() -> None:
    made: list[int] = []

    def source() -> Any:
        for number in range(3):
            made.append(number)
            yield f"model.layers.{number}.x.weight", number

    stream = Feed(adapter()).watch(source())
    assert next(stream) == ("model.layers.0.x.weight", 0)
    assert made == [0]


def test_asynchronous_streams_too() -> None:
    async def source() -> Any:
        for pair in pairs(TRUNK, names(0)):
            yield pair

    async def ask() -> None:
        return None

    async def play() -> bool:
        feed = Feed(adapter())
        assert [pair async for pair in feed.watch(source())] == pairs(TRUNK, names(0))
        return await feed.settle(ask)

    assert asyncio.run(play()) is True
