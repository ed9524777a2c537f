"""Every engine that a verl release registers, asked to train MTP. ``python -m tests.stack.engines_worker early|late``.

Real: verl's registry and engine classes. What VeOmni, TorchTitan, AutoModel and MindSpeed import, and this machine
lacks, is answered by empty modules; no engine gets as far as using it. ``late``: the plugin comes after the engines.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from types import SimpleNamespace
from typing import Any

#: Packages of the engines; whoever else asks for them hears that they are not installed.
ABSENT = ("veomni", "torchtitan", "nemo_automodel", "mindspeed", "torch_npu")
NAMES = ("fsdp", "veomni", "torchtitan", "automodel", "mindspeed", "megatron")
ASKED = {"enable": True, "enable_train": True, "enable_rollout": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "asked": {},
    "no rollout": {"mtp": {**ASKED, "enable_rollout": False}},
    "lora": {"lora_rank": 8},
    "frozen": {"mtp": {**ASKED, "enable_train": False}},
    "off": {"mtp": {**ASKED, "enable": False}},
    "forward only": {"forward_only": True},
    "critic": {"model_type": "value_model"},
}


def configs(backend: str, mtp: dict[str, bool] = ASKED, **given: Any) -> dict[str, Any]:
    """What ``TrainingWorker`` hands to the registry, as far as it is looked at."""
    model = SimpleNamespace(mtp=SimpleNamespace(**mtp), lora_rank=given.get("lora_rank", 0), hf_config=None)
    model.model_type = given.get("model_type", "language_model")
    engine = SimpleNamespace(strategy=backend, forward_only=given.get("forward_only", False))
    return {"model_config": model, "engine_config": engine, "optimizer_config": None, "checkpoint_config": None}


def outcome(call: Any, *args: Any, **kwargs: Any) -> str:
    """``refused``, with the message's beginning, or that it went on, be it into an error of the empty configs."""
    try:
        call(*args, **kwargs)
    except NotImplementedError as error:
        if type(error).__name__ == "UnsupportedError":
            return str(error).partition(";")[0]
    except Exception:
        pass
    return "went on"


def bare(engine_class: type, backend: str, **given: Any) -> Any:
    """An engine with its configs and nothing else."""
    engine: Any = object.__new__(engine_class)
    vars(engine).update(configs(backend, **given))
    return engine


def ask(registry: Any) -> dict[str, Any]:
    """What becomes of each registered engine, by the registry and by itself."""
    found: dict[str, Any] = {}
    for model_type, backends in registry._engines.items():
        for backend, classes in backends.items():
            for device, engine_class in classes.items():
                if engine_class in MADE:
                    continue
                os.environ["DEVICE_OF_THE_TEST"] = device
                name = f"{engine_class.__name__} {backend} {device}"
                made = outcome(registry.new, model_type, backend, **configs(backend, model_type=model_type))
                itself = outcome(bare(engine_class, backend, model_type=model_type).initialize)
                found[name] = {"model_type": model_type, "made": made, "itself": itself}
    return found


def variants(engine_class: type, registry: Any) -> dict[str, Any]:
    found = {}
    for name, given in VARIANTS.items():
        model_type = given.get("model_type", "language_model")
        made = outcome(registry.new, model_type, "fsdp2", **configs("fsdp2", **given))
        found[name] = [made, outcome(bare(engine_class, "fsdp2", **given).initialize)]
    return found


#: The engines of other packages.
MADE: list[type] = []


def make_third_parties(base: Any, fsdp: type) -> None:
    """Engines of other packages, registered as they are made."""

    class Engine(base.BaseEngine):
        def __init__(self, model_config: Any, engine_config: Any, *args: Any, **kwargs: Any) -> None:
            self.model_config, self.engine_config = model_config, engine_config

        def initialize(self) -> str:
            return "weights"

    class Silent(Engine):
        def initialize(self) -> str:
            return super().initialize()

    class Reads(Engine):
        def initialize(self) -> str:
            return "MTP" if self.model_config.mtp.enable else "weights"

    class ReadsByHelper(Engine):
        def initialize(self) -> str:
            return _layers(self.model_config)

    class Says(Engine):
        trains_mtp = True

    class Denies(Reads):
        trains_mtp = False

    class OfFsdp(fsdp):
        def initialize(self) -> Any:
            return super().initialize()

    for cls in (Silent, Reads, ReadsByHelper, Says, Denies, OfFsdp):
        MADE.append(cls)
        base.EngineRegistry.register(model_type="language_model", backend=cls.__name__, device=["cuda", "cpu"])(cls)


def third_parties(registry: Any) -> dict[str, Any]:
    """Each made by the registry, made directly, and without MTP."""
    os.environ["DEVICE_OF_THE_TEST"] = "cuda"
    return {
        cls.__name__: [
            outcome(registry.new, "language_model", cls.__name__, **configs(cls.__name__)),
            outcome(bare(cls, cls.__name__).initialize),
            outcome(bare(cls, cls.__name__, mtp={**ASKED, "enable": False}).initialize),
        ]
        for cls in MADE
    }


def _layers(model_config: Any) -> str:
    return "MTP" if getattr(model_config, "mtp", None) else "weights"


def everything(registry: Any, fsdp: type) -> dict[str, Any]:
    return {"engines": ask(registry), "variants": variants(fsdp, registry), "third parties": third_parties(registry)}


def main(when: str) -> dict[str, Any]:
    os.environ["VERL_USE_EXTERNAL_PLUGINS"] = "none"
    warnings.simplefilter("ignore")
    from verl_mtp_plugin.testing import stub_modules

    vars(stub_modules)["ABSENT"] = (*stub_modules.ABSENT, *ABSENT)
    stub_modules.install(importers=("verl", "transformers"))
    import verl_mtp_plugin

    if when == "early":
        verl_mtp_plugin.activate()
    base = importlib.import_module("verl.workers.engine.base")
    vars(base)["get_device_name"] = lambda: os.environ["DEVICE_OF_THE_TEST"]
    found: dict[str, Any] = {"errors": {}}
    for name in NAMES:
        try:
            importlib.import_module(f"verl.workers.engine.{name}.transformer_impl")
        except Exception as error:
            found["errors"][name] = f"{type(error).__name__}: {error}"
    fsdp = importlib.import_module("verl.workers.engine.fsdp.transformer_impl").FSDPEngineWithLMHead
    if when == "late":
        make_third_parties(base, fsdp)
        found["bare"] = everything(base.EngineRegistry, fsdp)
        verl_mtp_plugin.activate()
    else:
        make_third_parties(base, fsdp)
    found |= everything(base.EngineRegistry, fsdp)
    report = verl_mtp_plugin.report()
    found["patches"] = {r.id: str(r.decision) for r in report.patches if r.id.startswith("job.engines")}
    verl_mtp_plugin.deactivate()
    found["after deactivate"] = [outcome(bare(cls, "fsdp2").initialize) for cls in (fsdp, *MADE)]
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
