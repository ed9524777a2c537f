"""verl's engine over folders with and without MTP tensors, for the workers of :mod:`.test_weights` and its like."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

from tests.stack import tiny_mimo  # first: it makes the quickstart's modules importable

# isort: split
import engine
import model

Weights = dict[str, torch.Tensor]
#: Says that a new MTP head is started.
NOTICE = "missing_weights=random"


def prepare(bridge: str) -> None:
    """Load verl, the bridge and the plugin."""
    engine.prepare(plugin=True)
    tiny_mimo.prepare_bridge(bridge)


def register() -> None:
    """Let transformers read the tiny MiMo's config, where another process has made it."""
    model.register()


def make(folder: Path, bridge: str) -> Path:
    """The tiny MiMo in two files, MTP tensors in both, and the index."""
    source = tiny_mimo.make(folder / "made", bridge)
    return copy(source, folder / "full", model.load(source))


def copy(source: Path, folder: Path, weights: Mapping[str, torch.Tensor], *, files: int = 2) -> Path:
    """A model like ``source`` with these weights; without an index where it is one file."""
    model.copy_with_weights(source, folder, {})
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    places: dict[str, str] = {}
    for number in range(files):
        file = folder / (f"model-{number}.safetensors" if files > 1 else "model.safetensors")
        part = {name: weights[name].contiguous() for name in sorted(weights)[number::files]}
        save_file(part, file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file.name)
    if files > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def load(folder: Path) -> Weights:
    """All tensors in a folder, and below."""
    return {name: tensor for file in folder.rglob("*.safetensors") for name, tensor in load_file(file).items()}


def is_head(name: str) -> bool:
    """Whether a Hugging Face tensor belongs to MiMo's MTP layer."""
    return ".mtp_layers." in name


def build(
    source: Path,
    bridge: str,
    *,
    missing: str = "error",
    with_mtp: bool = True,
    saved: tuple[str, ...] = ("model", "optimizer", "extra"),
    options: Mapping[str, Any] | None = None,
) -> engine.Engine:
    """The quickstart's engine.

    Args:
        missing: ``mtp.plugin.missing_weights``.
        saved: what a checkpoint holds.
        options: of ``McoreEngineConfig``.
    """
    import verl.workers.config as configs
    from verl.workers.config import model as model_config

    from verl_mtp_plugin.job import configs as configs_in_use

    plugin = {"missing_weights": missing}
    configs_in_use._followed.clear()  # each engine is a job of its own: those of one would have to ask for the same
    engine_config, mtp_config = configs.McoreEngineConfig, model_config.MtpConfig
    with (
        patch.object(configs, "McoreEngineConfig", lambda **given: engine_config(**{**given, **(options or {})})),
        patch.object(model_config, "MtpConfig", lambda **given: mtp_config(**given, plugin=plugin)),
    ):
        return engine.Engine(
            source,
            train_mtp=with_mtp,
            with_mtp=with_mtp,
            steps=1,  # no warm-up: a resumed engine learns at the same rate
            vanilla_mbridge=bridge == tiny_mimo.MBRIDGE,
            saved=saved,
        )


def choose(missing: str) -> None:
    """Change ``missing_weights`` where no engine is built."""
    from verl_mtp_plugin import runtime

    runtime.activate(runtime.settings().with_config({"missing_weights": missing}))


def use_dist_checkpoints(trained: engine.Engine, *, use: bool) -> None:
    """What ``use_dist_checkpointing`` means for saving and loading, without one to start from."""
    manager = trained._engine.checkpoint_mananager
    manager.use_dist_checkpointing, manager.use_hf_checkpoint = use, not use


def separate_steps(resumed: engine.Engine) -> None:
    """Megatron counts the steps of all parameters in one tensor, which torch's Adam counts up once for each."""
    wrapped = resumed._engine.optimizer
    for optimizer in getattr(wrapped, "chained_optimizers", [wrapped]):
        for state in optimizer.optimizer.state.values():
            state["step"] = state["step"].clone()


def attempt(action: Callable[[], Any]) -> str:
    """The error that this ends in, or ""."""
    try:
        action()
    except Exception as error:  # whatever it is, the test reads it
        return f"{type(error).__name__}: {error}"
    return ""


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def head_statistics(trained: engine.Engine) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each MTP parameter, by its name in Megatron from the MTP block on."""
    named = (item for chunk in trained._engine.module for item in chunk.named_parameters())
    return {
        name.partition(".mtp.")[2]: (float(p.float().mean()), float(p.float().std(correction=0)))
        for name, p in named
        if ".mtp." in name
    }


@contextmanager
def notices() -> Iterator[list[str]]:
    """Within, the list grows by what is logged of a new MTP head."""
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if NOTICE in record.getMessage():
                seen.append(record.getMessage())

    logger, handler = logging.getLogger("verl_mtp_plugin"), Handler()
    logger.addHandler(handler)
    try:
        yield seen
    finally:
        logger.removeHandler(handler)


@contextmanager
def unmapped(bridge: Any, bridge_name: str, part: str) -> Iterator[None]:
    """Within, a bridge knows no Hugging Face name for parameters with ``part`` in their name."""
    owner = type(bridge if bridge_name == tiny_mimo.MBRIDGE else bridge._model_bridge)
    if bridge_name == tiny_mimo.MBRIDGE:
        convert = owner._convert_mtp_param

        def refuse(self: Any, name: str) -> Any:
            if part in name:
                raise NotImplementedError(name)
            return convert(self, name)

        with patch.object(owner, "_convert_mtp_param", refuse):
            yield
        return
    registry = owner.mapping_registry

    def smaller(self: Any) -> Any:
        full = registry(self)
        return type(full)(*(m for m in full.get_all_mappings() if part not in m.megatron_param))

    with patch.object(owner, "mapping_registry", smaller):
        yield


@contextmanager
def unsent(bridge: Any, bridge_name: str, part: str) -> Iterator[None]:
    """Within, a bridge converts such parameters to nothing."""
    nothing: Any = {}
    owner, name = type(bridge), "_weight_to_hf_format"
    if bridge_name == tiny_mimo.MBRIDGE:
        nothing = [], []
    else:
        owner, name = type(bridge._model_bridge), "maybe_modify_converted_hf_weight"
    original = getattr(owner, name)

    def convert(self: Any, what: Any, *args: Any) -> Any:
        return nothing if part in getattr(what, "global_param_name", what) else original(self, what, *args)

    with patch.object(owner, name, convert):
        yield
