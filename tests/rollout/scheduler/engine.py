"""One release of SGLang in a process of its own, without a GPU: what is imported, substituted and patched.

Stubs answer for kernels and for CUDA's part in sending tensors, and what SGLang's start sets up globally is put there.
"""

from __future__ import annotations

import gc
import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

MODULES = {
    "EAGLEWorker": "eagle_worker",
    "EAGLEWorkerV2": "eagle_worker_v2",
    "MultiLayerEagleWorker": "multi_layer_eagle_worker",
    "MultiLayerEagleWorkerV2": "multi_layer_eagle_worker_v2",
    "FrozenKVMTPWorker": "frozen_kv_mtp_worker",
    "FrozenKVMTPWorkerV2": "frozen_kv_mtp_worker_v2",
    "NGRAMWorker": "ngram_worker",
    "DFlashWorker": "dflash_worker",
    "DFlashWorkerV2": "dflash_worker_v2",
    "StandaloneWorker": "standalone_worker",
    "StandaloneWorkerV2": "standalone_worker_v2",
}
SCHEDULER = "sglang.srt.managers.scheduler"
TP_WORKER = "sglang.srt.managers.tp_worker"
UPDATER = "sglang.srt.managers.scheduler_components.weight_updater"
RUNNER = "sglang.srt.model_executor.model_runner"
RUNNER_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater"


def prepare() -> ModuleType:
    """Import SGLang's scheduler; the module."""
    from verl_mtp_plugin.testing import sglang_engine

    sglang_engine.install()
    import torch

    torch.distributed.barrier = lambda *args, **kwargs: None
    scheduler = importlib.import_module(SCHEDULER)
    importlib.import_module("sglang.srt.utils.patch_torch")  # after which the stand-in shares tensors by files
    torch.multiprocessing.set_sharing_strategy("file_descriptor")  # a handle that can be opened once, as CUDA's
    # What SGLang's start sets up for all modules, from 0.5.17 on.
    parallel = SimpleNamespace(tp_rank=0, pp_size=1, tp_group=SimpleNamespace(cpu_group=None))
    for name in (SCHEDULER, UPDATER, RUNNER_UPDATER, TP_WORKER):
        module = module_of(name)
        if module is not None:
            _substitute(module, get_parallel=lambda: parallel)
            _substitute(module, get_model=lambda: SimpleNamespace(weight_cache_mode="off"))
    gc.freeze()  # SGLang and these tests collect garbage often, and what was imported takes a second each time
    return scheduler


def _substitute(module: ModuleType, **names: Any) -> None:
    vars(module).update({name: value for name, value in names.items() if hasattr(module, name)})


def module_of(name: str) -> ModuleType | None:
    """The module; None in releases that have none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(str(error.name)):
            raise
        return None


def worker_class(name: str) -> Any:
    """A speculative worker's class; None in releases that have none, a string where it cannot be imported."""
    module = f"sglang.srt.speculative.{MODULES[name]}"
    try:
        found = module_of(module)
    except NameError as error:  # the release's own mistake
        return f"{type(error).__name__}: {error}"
    return None if found is None else getattr(found, name)


def message(named_tensors: Any) -> Any:
    """The message that SGLang's own sender makes of (name, tensor) pairs for one rank."""
    io = importlib.import_module("sglang.srt.managers.io_struct")
    utils = importlib.import_module("sglang.srt.utils")
    holder = importlib.import_module("sglang.srt.weight_sync.utils").LocalSerializedTensor
    serialize = utils.MultiprocessingSerializer.serialize
    packed = [(name, holder(values=[serialize(tensor)])) for name, tensor in named_tensors]
    return io.UpdateWeightsFromTensorReqInput(serialized_named_tensors=[serialize(packed)])


def io(name: str) -> Any:
    """A class of SGLang's messages; None in releases that have none of that name."""
    return getattr(importlib.import_module("sglang.srt.managers.io_struct"), name, None)


def in_session(scheduler: Any, update: Any) -> Any:
    """``update()``, between begin and end where SGLang asks for them."""
    begin, end = io("BeginWeightUpdateReqInput"), io("EndWeightUpdateReqInput")
    if begin is None:
        return update()
    assert scheduler.begin_weight_update(begin()).success
    try:
        return update()
    finally:
        assert scheduler.end_weight_update(end()).success


def arm(**settings: Any) -> dict[str, str]:
    """Activate the plugin; what became of its patches of SGLang's scheduler and of verl's adapter."""
    import verl_mtp_plugin
    from verl_mtp_plugin.rollout.sglang import adapter, scheduler
    from verl_mtp_plugin.settings import Settings

    ours = {patch.id for patch in (*adapter.PATCHES, *scheduler.PATCHES)}
    report = verl_mtp_plugin.activate(Settings(**settings))
    return {record.id: str(record.decision) for record in report.patches if record.id in ours}


def decided() -> dict[str, str]:
    """What becomes of the patches of the scheduler once its process has imported what it imports as it starts."""
    import verl_mtp_plugin

    importlib.import_module(RUNNER)
    return {record.id: str(record.decision) for record in verl_mtp_plugin.report().patches}
