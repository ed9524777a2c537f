"""SGLang's server on a machine without a GPU: all of it is real but the scheduler's batches, model and memory.

:func:`install` makes the processes that SGLang starts cheap: a scheduler of :mod:`.sglang_scheduler` in a thread (or,
with ``VERL_MTP_STANDIN=process``, in a process of its own as the real one), and no detokenizer. A scheduler that dies
takes its server with it by SIGQUIT, as SGLang's does.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any, Final, NamedTuple

from ..startup import AfterImport
from ..view import View
from . import stub_modules
from .threads import ThreadedMultiprocessing

VARIABLE: Final = "VERL_MTP_STANDIN"
#: For SGLang, which else looks for a GPU in every process that makes a ServerArgs.
ENVIRONMENT: Final = {"SGLANG_USE_CPU_ENGINE": "1"}
#: ``engine_kwargs.sglang`` of verl's rollout config.
ENGINE_KWARGS: Final = {"device": "cpu", "attention_backend": "torch_native"}
#: Told to the tokenizer manager, which checks lengths of prompts.
MAX_TOKENS: Final = 100_000


class Death(NamedTuple):
    """Of a scheduler in a thread of this process: when, by ``time.monotonic()``, and of what."""

    at: float
    traceback: str


#: All of them; a test that waits for one of the dead need not.
deaths: list[Death] = []
#: The schedulers that run in threads of this process, the newest last.
schedulers: list[Any] = []


def _quit_server() -> None:
    os.kill(os.getpid() if threading.current_thread().daemon else os.getppid(), signal.SIGQUIT)


#: What a dying scheduler does; a test that looks into one process puts something milder here.
on_death: Callable[[], None] = _quit_server


def install() -> None:
    """Stand in for what a GPU is needed for, in whatever this process imports; a second call changes nothing."""
    os.environ.update(ENVIRONMENT)
    stub_modules.install()
    while _ACTIONS:
        name, action = _ACTIONS.popitem()
        if name in sys.modules:
            action(sys.modules[name])
        else:
            sys.meta_path.insert(0, AfterImport(name, action))


def run_scheduler_process(server_args: Any, port_args: Any, *arguments: Any) -> None:
    """In the place of SGLang's own: ``arguments`` are ranks, which differ by release, and the pipe to the server."""
    install()
    parent = os.getppid()
    scheduler = make_scheduler(server_args, port_args)
    schedulers.append(scheduler)
    arguments[-1].send({"status": "ready", "max_total_num_tokens": MAX_TOKENS, "max_req_input_len": MAX_TOKENS})
    try:
        scheduler.run(lambda: scheduler.stopped or os.getppid() != parent)
    except Exception as error:
        traceback.print_exc()
        deaths.append(Death(time.monotonic(), traceback.format_exc()))
        scheduler.death = f"{type(error).__name__}: {error}"
        on_death()
    _wait_for_ever()  # it answers nobody; if it ended, SGLang's watchdog would end the server


def make_scheduler(server_args: Any, port_args: Any) -> Any:
    """SGLang's ``Scheduler``, never initialized, with the stand-in's state and loop before it."""
    import torch
    from sglang.srt.managers.scheduler import Scheduler

    from .sglang_messages import Sockets
    from .sglang_scheduler import Behavior
    from .sglang_workers import make_workers

    _feign_device(torch)
    stand_in = type("StandInScheduler", (Behavior, Scheduler), {})
    scheduler = stand_in(server_args, Sockets(port_args), make_workers(server_args))
    add_components(scheduler)
    return scheduler


def add_components(scheduler: Any) -> None:
    """The parts into which later releases of SGLang have taken rules out of their ``Scheduler``, themselves."""
    try:
        from sglang.srt.managers.scheduler_components import flush_wrapper, weight_updater
    except ImportError:
        return
    _feign_group(weight_updater)
    channels = scheduler.ipc_channels
    values = {
        **{name: getattr(scheduler, name) for name in ("tp_worker", "draft_worker", "memory_saver_adapter")},
        **{name: getattr(scheduler, name) for name in ("flush_cache", "is_fully_idle")},
        "tp_cpu_group": None,  # up to 0.5.21; later it asks for the group itself
        "scheduler": scheduler,
        "ipc_channels": channels,  # up to 0.5.22
        "send_output": channels.send_to_tokenizer.send_output,  # from 0.5.23 on
    }
    made = make_part(weight_updater.SchedulerWeightUpdaterManager, values)
    scheduler.weight_updater, scheduler.offload_tags = made, made.offload_tags
    scheduler.flush_wrapper = make_part(flush_wrapper.SchedulerFlushWrapper, values)


def make_part(part: type, values: Mapping[str, Any]) -> Any:
    """A part of SGLang's scheduler, given those of ``values`` that this release's takes.

    Raises:
        TypeError: it needs another one.
    """
    takes = inspect.signature(part).parameters
    return part(**{name: value for name, value in values.items() if name in takes})


def _feign_group(module: ModuleType) -> None:
    """A tensor-parallel group of one rank, which only a scheduler with a GPU makes (SGLang >= 0.5.22 asks for it)."""
    known = getattr(module, "get_parallel", None)
    if known is not None:
        group = SimpleNamespace(cpu_group=None)
        vars(module)["get_parallel"] = lambda: View(known(), tp_group=group)


def _feign_device(torch: Any) -> None:
    """Collectives of one rank, and a device that has nothing to wait for."""
    torch.distributed.barrier = lambda *args, **kwargs: None
    device = SimpleNamespace(synchronize=lambda: None, empty_cache=lambda: None, current_device=lambda: "cpu")
    torch.get_device_module = lambda *args: device
    torch.cuda.empty_cache = lambda: None
    cpu = sys.modules.get("sglang.srt.platforms.cpu")  # of later releases; it collects garbage for half a second
    if cpu is not None:
        cpu.CpuDeviceMixin.empty_cache = lambda self: None


def _wait_for_ever(*args: Any, **kwargs: Any) -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)


def _scheduler(module: ModuleType) -> None:
    vars(module)["run_scheduler_process"] = run_scheduler_process
    if hasattr(module, "retract_all"):  # gives back rows of the KV pool; older releases have it on the batch
        vars(module)["retract_all"] = lambda **kwargs: None


def _detokenizer(module: ModuleType) -> None:
    vars(module)["run_detokenizer_process"] = _wait_for_ever


def _engine(module: ModuleType) -> None:
    if os.environ.get(VARIABLE, "thread") == "thread":
        vars(module)["mp"] = ThreadedMultiprocessing("multiprocessing")


def _patch_torch(module: ModuleType) -> None:
    # Its reducer indexes what a CUDA tensor's pickle has and a CPU tensor's has not.
    vars(module)["monkey_patch_torch_reductions"] = lambda: None
    # CPU tensors go to processes that are no relatives, which only files reach.
    module.torch.multiprocessing.set_sharing_strategy("file_system")


def _server_adapter(module: ModuleType) -> None:
    if hasattr(module, "get_device_id"):
        vars(module)["get_device_id"] = lambda: "cpu"


#: What is still to be done, by the module that it is done to.
_ACTIONS: Final[dict[str, Callable[[ModuleType], None]]] = {
    "sglang.srt.managers.scheduler": _scheduler,
    "sglang.srt.managers.detokenizer_manager": _detokenizer,
    "sglang.srt.entrypoints.engine": _engine,
    "sglang.srt.utils.patch_torch": _patch_torch,
    "verl.workers.rollout.sglang_rollout.sglang_rollout": _server_adapter,
}
