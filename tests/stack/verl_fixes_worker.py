"""What verl's real Megatron engine does about MTP. Prints JSON.

``python -m tests.stack.verl_fixes_worker FOLDER on|bare CASE...``. ``bare``: with no more of the plugin than a MiMo
with MTP needs to be built and trained at all. Two processes that torchrun's variables describe make a pipeline.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verl_mtp_plugin.testing import cuda

from .verl_fixes_samples import FORMS, KINDS
from .watched_engine import (
    Witness,
    batch,
    decisions,
    make_model,
    mean_log_prob,
    mtp_engine,
    new_engine,
    prepare,
    squared_values,
    use_pipeline,
)

CASES: dict[str, Callable[[Path], Any]] = {}


def case(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    CASES[function.__name__] = function
    return function


@case
def masks(folder: Path) -> Any:
    """Labels and loss mask at the ``GPTModel``, for each kind of loss mask, packed (thd) and padded (bshd)."""
    built = mtp_engine(folder, train_mtp=True)
    witness = Witness(built._engine)
    found: dict[str, Any] = {}
    for kind in KINDS:
        for form in FORMS:
            vars(built._engine.engine_config)["use_remove_padding"] = form == "thd"
            with built._engine.train_mode():
                try:
                    built._engine.train_batch(batch(kind, built.tokenizer), loss_function=mean_log_prob)
                except Exception as error:  # what verl as released makes of some of them
                    found[f"{kind}_{form}"] = type(error).__name__
                    witness.take()
                    continue
            (found[f"{kind}_{form}"],) = witness.take()["calls"]
    return found


@case
def forward_only(folder: Path) -> Any:
    """Log-prob recompute and evaluation with MTP trained, enabled only, and disabled; and one step of each."""
    found = {}
    for name, options in {
        "trained": {"train_mtp": True},
        "enabled": {"train_mtp": False},
        "disabled": {"train_mtp": False, "with_mtp": False},
    }.items():
        built = mtp_engine(folder, **options)
        engine = built._engine
        witness, config = Witness(engine), engine.model_config
        with engine.eval_mode():
            recomputed = engine.infer_batch(batch("padded", built.tokenizer), loss_function=None)
            seen: dict[str, Any] = {"recompute": witness.take()}
            evaluated = engine.infer_batch(batch("full", built.tokenizer), loss_function=mean_log_prob)
            seen["evaluation"] = witness.take()
        with engine.train_mode():
            engine.train_batch(batch("padded", built.tokenizer), loss_function=mean_log_prob)
        seen["step"] = witness.take()
        if recomputed:  # the last pipeline stage
            seen["log_probs"] = [row.tolist() for row in recomputed["model_output"]["log_probs"].unbind()]
            seen["metrics"] = sorted(evaluated["metrics"])
        seen["config_restored"] = engine.model_config is config and config.mtp.enable_train == options["train_mtp"]
        seen["mtp_num_layers"] = engine.tf_config.mtp_num_layers
        seen["mtp_parameters"] = sum("mtp." in name for name, _ in witness.model.named_parameters())
        found[name] = seen
    return found


@case
def newest_megatron(folder: Path) -> Any:
    """A step with MTP disabled, on a megatron-core that makes up labels where a model has MTP layers and none come."""
    built = mtp_engine(folder, train_mtp=False, with_mtp=False)
    witness = Witness(built._engine)
    with built._engine.train_mode():
        built._engine.train_batch(batch("padded", built.tokenizer), loss_function=mean_log_prob)
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    seen = witness.take()
    return {"heads": seen["heads"], "mtp": seen["mtp"], "tracker": sorted(MTPLossLoggingHelper.tracker)}


@case
def critic(folder: Path) -> Any:
    """A value model with MTP asked for in its config: values, and one training step."""
    from verl.workers.engine import EngineRegistry

    source = make_model(folder)
    config = json.loads((source / "config.json").read_text())
    config["architectures"] = ["MiMoForTokenClassification"]
    (source / "config.json").write_text(json.dumps(config))
    new = EngineRegistry.new

    def new_critic(*, model_config: Any, **options: Any) -> Any:
        model_config.model_type = "value_model"  # as verl's worker sets it; 0.7.1 goes by the architecture
        return new(model_config=model_config, **{**options, "model_type": "value_model"})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(EngineRegistry, "new", new_critic)
        built = new_engine(source, train_mtp=True)
    engine = built._engine
    witness = Witness(engine)
    with engine.eval_mode():
        values = engine.infer_batch(batch("padded", built.tokenizer), loss_function=None)["model_output"]["values"]
    inferred = witness.take()
    with engine.train_mode():
        output = engine.train_batch(batch("padded", built.tokenizer), loss_function=squared_values)
    return {
        "class": type(engine).__name__,
        "values": [row.tolist() for row in values.unbind()],
        "inferred": inferred,
        "trained": witness.take(),
        "grad_norm": float(output["metrics"]["grad_norm"]),
    }


@case
def none_built(folder: Path) -> Any:
    """MTP enabled, and taken away by an override."""
    from verl_mtp_plugin.testing import verl_engine

    found = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(verl_engine.TRANSFORMER_CONFIG, "mtp_num_layers", None)
        for train_mtp in (True, False):
            try:
                mtp_engine(folder, train_mtp=train_mtp)
                found[str(train_mtp)] = "built"
            except Exception as error:
                found[str(train_mtp)] = f"{type(error).__name__}: {error}"
    return found


@case
def pipeline_stages(folder: Path) -> Any:
    """Which chunks of a model ``check_mtp_is_built`` refuses."""
    from verl_mtp_plugin.bridges.built import check_mtp_is_built

    found = {}
    for name, (depths, last, block) in {
        "last_with_mtp": (1, True, True),
        "last_without_mtp": (1, True, False),
        "first": (1, False, False),
        "first_zero_depths": (0, False, False),
        "last_zero_depths": (0, True, False),
        "last_no_depths": (None, True, False),
    }.items():
        built = mtp_engine(folder, train_mtp=True)
        model = Witness(built._engine).model
        model.config.mtp_num_layers, model.post_process = depths, last
        if not block:
            del model.mtp
        try:
            check_mtp_is_built(built._engine.module, 1, bridge="mbridge 1.2")
            found[name] = "passed"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


@case
def config(folder: Path) -> Any:
    """What verl's ``check_mtp_config``, as the engine calls it, makes of several Hugging Face configs."""
    from types import SimpleNamespace

    from transformers import PretrainedConfig
    from verl.workers.engine.megatron import transformer_impl

    found: dict[str, Any] = {}
    for enable in (True, False):
        for name, counts, text in (
            ("deepseek", {"num_nextn_predict_layers": 1}, None),
            ("qwen3_5", {"mtp_num_hidden_layers": 1}, None),
            ("qwen3_5_vl", {}, {"mtp_num_hidden_layers": 1}),
            ("cleared", {"num_nextn_predict_layers": 0}, None),
            ("none", {}, None),
        ):
            hf_config = PretrainedConfig(**counts)
            if text is not None:
                hf_config.text_config = PretrainedConfig(**text)
            mtp = SimpleNamespace(enable=enable, enable_train=enable, mtp_loss_scaling_factor=0.3)
            mtp.get = lambda key, default=None, mtp=mtp: getattr(mtp, key, default)
            engine_config = SimpleNamespace(override_transformer_config={"mtp_loss_scaling_factor": 0.7})
            before = json.dumps(hf_config.to_dict(), default=str)
            try:
                transformer_impl.check_mtp_config(SimpleNamespace(hf_config=hf_config, mtp=mtp), engine_config)
            except ValueError as error:
                found[f"{name}_{enable}"] = str(error)[:40]
                continue
            parts = [part for part in (hf_config, getattr(hf_config, "text_config", None)) if part is not None]
            left = [vars(part).get(key) for part in parts for key in {**counts, **(text or {})} if key in vars(part)]
            found[f"{name}_{enable}"] = {
                "override": engine_config.override_transformer_config,
                "counts": left,
                "config_changed": json.dumps(hf_config.to_dict(), default=str) != before,
            }
    return found


def main() -> None:
    folder, mode, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    prepare(bare=mode == "bare")
    if "WORLD_SIZE" in os.environ:
        use_pipeline()
    found: dict[str, Any] = {"decisions": decisions()}
    for name in names:
        try:
            found[name] = CASES[name](folder / name)
        except Exception as error:  # what verl as released makes of some
            traceback.print_exc()
            found[name] = f"{type(error).__name__}: {error}"
    print("=> " + json.dumps(found))
    cuda.end_process()


if __name__ == "__main__":
    main()
