"""SGLang's real classes from the scheduler down to the loading of a model, around models that are small and known."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from types import SimpleNamespace
from typing import Any

from . import engine


def make_runner(model: Any) -> Any:
    """A model runner of SGLang's with this model, as far as loading goes."""
    runner_class = importlib.import_module(engine.RUNNER).ModelRunner
    runner = object.__new__(runner_class)
    vars(runner).update(model=model, device="cpu", tp_rank=0)
    module = engine.module_of(engine.RUNNER_UPDATER)
    if module is None:
        runner.server_args = SimpleNamespace(custom_weight_loader=[])
    else:
        known = {"tp_rank": 0, "device": "cpu", "get_model": lambda: model, "custom_weight_loaders": {}}
        names = [field.name for field in dataclasses.fields(module.WeightUpdater)]
        runner.weight_updater = module.WeightUpdater(**{name: known.get(name) for name in names if name[0] != "_"})
    return runner


def make_target(runner: Any) -> Any:
    """The target's worker, over its runner."""
    target_class = importlib.import_module(engine.TP_WORKER).TpModelWorker
    target = object.__new__(target_class)
    vars(target).update(tp_rank=0, ps=SimpleNamespace(tp_rank=0), _model_runner=runner, model_runner_list=[runner])
    if not isinstance(inspect.getattr_static(target_class, "model_runner", None), property):
        target.model_runner = runner
    return target


def make_worker(name: str, drafts: list[Any], target: Any) -> Any:
    """A speculative worker over its draft runners (one, several, or none) and the target's worker."""
    cls = engine.worker_class(name)
    worker = object.__new__(cls)
    inner = SimpleNamespace(draft_runner_list=drafts, draft_runners=drafts, model_runner_list=drafts)
    if drafts:
        inner.draft_runner = inner.model_runner = drafts[0]
    values = {"target_worker": target, "_target_worker": target, "_draft_worker": inner if drafts else None}
    values |= {"tp_rank": 0, "ps": SimpleNamespace(tp_rank=0), "speculative_num_steps": len(drafts)}
    base = importlib.import_module(engine.TP_WORKER).TpModelWorker
    if issubclass(cls, base):
        values |= {"model_runner": drafts[0], "_model_runner": drafts[0], "model_runner_list": drafts}
    elif name.startswith("DFlash"):
        values |= {"draft_worker": inner, "draft_model_runner": drafts[0], "model_runner": target.model_runner}
    elif name == "NGRAMWorker":
        values["model_runner"] = target.model_runner
    for key, value in values.items():
        if not isinstance(inspect.getattr_static(cls, key, None), property):
            vars(worker)[key] = value
    return worker


def make_scheduler(draft_worker: Any, target: Any, flushed: Any) -> Any:
    """What handles weight updates: the scheduler itself, or the part of it that does from 0.5.13 on.

    Args:
        flushed: called instead of flushing the cache.
    """
    rules: dict[str, Any] = {
        "flush_cache": lambda *args, **kwargs: (flushed(), True)[1],
        "is_fully_idle": lambda *args, **kwargs: True,
    }
    parts = {"tp_worker": target, "draft_worker": draft_worker, "tp_cpu_group": None, "memory_saver_adapter": None}
    made = make_updater(parts | rules | {"scheduler": _Owner()})
    if made is not None:
        return made
    mixin = importlib.import_module("sglang.srt.managers.scheduler_update_weights_mixin")
    scheduler = mixin.SchedulerUpdateWeightsMixin()
    vars(scheduler).update(parts | rules)
    return scheduler


def make_updater(values: dict[str, Any]) -> Any:
    """The scheduler's part that updates weights, with as many of these fields as it has; None before 0.5.13."""
    module = engine.module_of(engine.UPDATER)
    if module is None:
        return None
    manager = module.SchedulerWeightUpdaterManager
    fields = {field.name for field in dataclasses.fields(manager) if field.init}
    return manager(**{name: value for name, value in values.items() if name in fields})


class _Owner:
    """A scheduler, to its part that updates weights."""

    _engine_paused = True
    disaggregation_mode = None

    def record_weight_version_change(self, new_version: Any) -> None:
        """SGLang 0.5.15 and later note which request saw which version."""
